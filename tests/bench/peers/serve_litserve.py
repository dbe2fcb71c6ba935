"""LitServe, as its documentation shows an image classifier: decode, batch, predict, encode.

python -m tests.bench.peers.serve_litserve --weights FILE --port PORT
"""

# LitServe looks at annotations, which must be the types themselves: no `annotations` of the future.
from typing import Any

import litserve
from fastapi import UploadFile

from tests.bench.peers.serving import Network, parse_arguments

MAX_IN_A_BATCH = 8
SECONDS_FOR_A_BATCH = 0.01


class ImageClassifier(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, weights: str) -> None:
        super().__init__(max_batch_size=MAX_IN_A_BATCH, batch_timeout=SECONDS_FOR_A_BATCH)
        self._weights = weights

    def setup(self, device: str) -> None:
        self.network = Network(self._weights)

    def decode_request(self, request: UploadFile) -> bytes:
        return request.file.read()

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[dict[str, Any]]:
        return self.network.predict(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def main() -> None:
    arguments = parse_arguments()
    server = litserve.LitServer(
        ImageClassifier(arguments.weights), accelerator="cpu", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
