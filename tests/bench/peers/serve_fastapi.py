"""Plain FastAPI: a handler that decodes, transforms and runs the eager float32 network.

    python -m tests.bench.peers.serve_fastapi --weights FILE --port PORT

The handler is no coroutine, so that FastAPI runs requests side by side in its threads.
"""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import Body, FastAPI

from tests.bench.peers.serving import Network, parse_arguments

# FastAPI reads annotations when the handler is made, in the module's own names.
Bytes = Body(media_type="application/octet-stream")


def main() -> None:
    arguments = parse_arguments()
    network = Network(arguments.weights)
    app = FastAPI()

    @app.post("/predict")
    def predict(body: bytes = Bytes) -> dict[str, Any]:
        return network.predict([body])[0]

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
