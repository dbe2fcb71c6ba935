"""Ray Serve's documented image classifier: a deployment that decodes, and runs the network.

python -m tests.bench.peers.serve_ray --weights FILE --port PORT
"""

from __future__ import annotations

import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.bench.peers.serving import Network, parse_arguments


@serve.deployment
class ImageClassifier:
    def __init__(self, weights: str) -> None:
        self.network = Network(weights)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self.network.predict([await request.body()])[0]


def main() -> None:
    arguments = parse_arguments()
    ray.init(address="local")  # and not one that an earlier program has left here
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    classifier: Any = ImageClassifier
    serve.run(classifier.bind(arguments.weights), route_prefix="/predict")
    signal.pause()


if __name__ == "__main__":
    main()
