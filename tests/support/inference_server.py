"""A server of one model that speaks the Open Inference Protocol, in a thread of this process.

It gives the mean of each third of an image's rows as three scores, so that their order depends on
the layout, on the order of channels and on the normalisation.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

__all__ = ["ModelServer", "model_server", "scores_of"]

SIDE = 24
_BINARY_LENGTH = "Inference-Header-Content-Length"
_TYPES = {"FP32": np.float32, "UINT8": np.uint8}


@dataclass
class ModelServer:
    """A running server, and how it behaves.

    Attributes:
        url: Of its model.
        datatype: Type of the input.
        shape: Of the input, as the server says it.
        scores: `logits`, or the probabilities of a `softmax`.
        extensions: What it says that it can.
        faults: (status, Retry-After) of the next responses, before it answers.
        requests: Header fields and JSON of the requests so far.
        output: What it says of its output.
        answer: What it answers instead of its scores.
    """

    url: str = ""
    datatype: str = "FP32"
    shape: tuple[int, ...] = (-1, 3, SIDE, SIDE)
    scores: str = "logits"
    extensions: list[str] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    output: dict[str, Any] = field(
        default_factory=lambda: {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
    )
    answer: Any = None

    @property
    def host(self) -> str:
        """Host and port."""
        return self.url.split("/")[2]

    def describe(self) -> dict[str, Any]:
        """Return what the protocol calls the model's metadata."""
        inputs = [{"name": "image", "datatype": self.datatype, "shape": list(self.shape)}]
        return {
            "name": "thirds",
            "versions": ["1"],
            "platform": "test",
            "inputs": inputs,
            "outputs": [self.output],
        }

    def infer(self, request: dict[str, Any], tail: bytes) -> dict[str, Any]:
        """Return the response to a request."""
        (given,) = request["inputs"]
        kind = _TYPES[given["datatype"]]
        binary = "binary_data_size" in given.get("parameters", {})
        numbers = np.frombuffer(tail, kind) if binary else np.array(given["data"], kind)
        images = numbers.reshape(given["shape"]).astype(np.float32)
        if self.shape[1] not in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        scores = scores_of(images, self.scores)
        data = scores.ravel().tolist() if self.answer is None else self.answer
        output = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape), "data": data}
        return {"model_name": "thirds", "outputs": [output]}


def scores_of(images: np.ndarray[Any, np.dtype[np.float32]], kind: str = "logits") -> Any:
    """Return the scores (N, 3) of normalised images (N, C, H, W); the first channel counts more."""
    weights = np.arange(images.shape[1], 0, -1, dtype=np.float32)[:, None, None]
    logits = np.stack(
        [part.mean(axis=(1, 2, 3)) for part in np.split(images * weights, 3, axis=2)], axis=1
    )
    if kind == "logits":
        return logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@contextlib.contextmanager
def model_server(**behaviour: Any) -> Iterator[ModelServer]:
    """Run a server on a free port of loopback until the end of the block."""
    state = ModelServer(**behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v2":
                self._send(200, {"name": "test", "extensions": state.extensions})
            elif self.path == "/v2/models/thirds":
                self._send(200, state.describe())
            else:
                self._send(404, {"error": f"there is no {self.path}"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers.get(_BINARY_LENGTH, len(body)))
            request = json.loads(body[:length])
            state.requests.append((dict(self.headers), request))
            if state.faults:
                status, wait = state.faults.pop(0)
                self._send(status, {"error": "not now"}, wait)
            else:
                self._send(200, state.infer(request, body[length:]))

        def _send(self, status: int, content: dict[str, Any], wait: str = "") -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if wait:
                self.send_header("Retry-After", wait)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v2/models/thirds"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
