"""A network that another server runs: its forward pass is a request.

    network = HostedNetwork(manifest.hosted, num_outputs=3)
    logits = network(images)        # float32 (N, C, H, W) -> (N, 3)

Requests are those of the Open Inference Protocol (https://github.com/kserve/open-inference-protocol),
which Triton, KServe, MLServer and others speak. A package names a URL, and a package may come from
anybody, so only hosts that the setting `EAGLERAY_HOSTED_MODELS` allows are ever asked.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt
import torch
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay
from torch import Tensor, nn

from eagleray.core.environment import is_loopback_address
from eagleray.core.errors import InputError, OutageError
from eagleray.core.settings import Settings, read_settings
from eagleray.io.http import UrlPolicy
from eagleray.io.http.fetch import BACKOFF, parse_retry_after
from eagleray.io.http.urls import parse_url
from eagleray.models.manifest import Hosted

__all__ = ["TINY", "HostedNetwork", "HostedServer"]

_BINARY_LENGTH: Final = "Inference-Header-Content-Length"
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_CONNECT_SECONDS: Final = 10.0
_MAX_TEXT: Final = 200  # characters of what a server says, in a message
_MAX_BYTES: Final = 2**20  # of a response, besides its numbers
_BYTES_OF_A_NUMBER: Final = 32  # in JSON
TINY: Final = 1e-12  # below the smallest probability of float32 that is told from 0 in a sum with 1


class _BusyError(Exception):
    """The server does not answer now; `wait` is its `Retry-After` in seconds, or 0."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class HostedServer:
    """Sends requests to a model on another server; threads may call it at the same time.

    Args:
        url: Of the model, as in `https://models.example.com/v2/models/products`.
        timeout_seconds: Time of a request with all its attempts.
        settings: Hosts that may be asked, and their keys.

    Raises:
        InputError: If the settings do not allow the host.
    """

    def __init__(self, url: str, *, timeout_seconds: float, settings: Settings) -> None:
        target = parse_url(url)
        self._host = target.host
        self._url = url.rstrip("/")
        self._seconds = timeout_seconds
        if not UrlPolicy(hosts=settings.hosted_hosts).allows(url):
            raise InputError(
                f"The model is hosted by {target.host} on port {target.port}, which this process "
                "may not ask; add it to EAGLERAY_HOSTED_MODELS, which lists hosts with commas, "
                "such as models.example.com,10.0.0.7:8000."
            )
        key = _keys(settings.hosted_model_keys).get(target.host)
        is_plain = target.scheme == "http" and not _is_here(target.host)
        if key and is_plain:
            raise InputError(f"{url} would send its key over the network in plain text; use https.")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            follow_redirects=False,  # the key is for this server
        )

    def describe(self) -> dict[str, Any]:
        """Return what the server says of the model: its inputs and outputs.

        Raises:
            InputError: If it has no such model, or refuses the request.
            OutageError: If it does not answer.
        """
        return self._ask("GET", self._url, limit=_MAX_BYTES)

    def takes_binary(self) -> bool:
        """Whether the server takes tensors as bytes beside the JSON of a request.

        Raises:
            OutageError: If it does not answer.
        """
        server = self._url.partition("/v2/models/")[0] + "/v2"
        try:
            extensions = self._ask("GET", server, limit=_MAX_BYTES).get("extensions")
        except InputError:  # it says nothing of itself
            return False
        return isinstance(extensions, list) and "binary_tensor_data" in extensions

    def infer(self, hosted: Hosted, tensor: npt.NDArray[Any], num_outputs: int) -> Any:
        """Return the numbers that the model gives for a tensor, as nested or flat lists.

        Args:
            hosted: Names and types of the model's input and output.
            tensor: Images (N, …) in the type and layout of its input.
            num_outputs: Number of values for an image.

        Raises:
            InputError: If the server refuses the request, or answers something else.
            OutageError: If it does not answer.
        """
        described: dict[str, Any] = {
            "name": hosted.input,
            "shape": list(tensor.shape),
            "datatype": hosted.datatype,
        }
        request = {"inputs": [described], "outputs": [{"name": hosted.output}]}
        headers = {"Content-Type": "application/json"}
        if hosted.binary:
            described["parameters"] = {"binary_data_size": tensor.nbytes}
            text = json.dumps(request).encode()
            headers = {
                "Content-Type": "application/octet-stream",
                _BINARY_LENGTH: str(len(text)),
            }
            content = text + tensor.tobytes()
        else:
            described["data"] = tensor.ravel().tolist()
            content = json.dumps(request).encode()
        limit = _MAX_BYTES + _BYTES_OF_A_NUMBER * len(tensor) * num_outputs
        said = self._ask(
            "POST", f"{self._url}/infer", limit=limit, content=content, headers=headers
        )
        outputs = said.get("outputs")
        found = [
            one
            for one in (outputs if isinstance(outputs, list) else [])
            if isinstance(one, dict) and one.get("name") == hosted.output
        ]
        if len(found) != 1 or "data" not in found[0]:
            raise InputError(f"{self._host} gives no output {hosted.output!r} of the model.")
        return found[0]["data"]

    def _ask(self, method: str, url: str, *, limit: int, **request: Any) -> dict[str, Any]:
        """Return the JSON of a response; a server that is busy is asked again.

        Raises:
            InputError: If it refuses the request.
            OutageError: If it does not answer in time.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(_BusyError),
            wait=_wait,
            stop=stop_before_delay(self._seconds),
            reraise=True,
        )
        try:
            content: bytes = retrying(self._ask_once, method, url, limit, request)
        except _BusyError as error:
            raise OutageError(f"The server of the hosted model does not answer: {error}.") from None
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise InputError(f"{self._host} responds with something else than a JSON object.")
        return said

    def _ask_once(self, method: str, url: str, limit: int, request: Mapping[str, Any]) -> bytes:
        try:
            with self._client.stream(method, url, **request) as response:
                content = b""
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > limit:
                        raise InputError(f"{self._host} responds with more than {limit:,} bytes.")
        except httpx.TransportError as error:
            raise _BusyError(f"{self._host}: {error or type(error).__name__}") from None
        status = response.status_code
        if status in _TRANSIENT:
            wait = parse_retry_after(response.headers.get("Retry-After"))
            raise _BusyError(f"{self._host} responds {status}", wait)
        if status != httpx.codes.OK:
            text = " ".join(content.decode(errors="replace").split())[:_MAX_TEXT]
            raise InputError(f"{self._host} responds {status} to {method} {url}: {text}")
        return content


class HostedNetwork(nn.Module):
    """A network whose forward pass is a request to another server; it has no parameters.

    Args:
        hosted: Where it is, and what it takes.
        num_outputs: Number of values for an image.
        settings: Hosts that may be asked, and their keys; None for those of the process.

    Raises:
        InputError: If the settings do not allow the host.
    """

    def __init__(
        self, hosted: Hosted, *, num_outputs: int, settings: Settings | None = None
    ) -> None:
        super().__init__()
        self._hosted, self._num_outputs = hosted, num_outputs
        self._server = HostedServer(
            hosted.url,
            timeout_seconds=hosted.timeout_seconds,
            settings=settings or read_settings(),
        )
        self._pace = _Pace(hosted.max_images_per_second)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, or values, of normalised images.

        Args:
            images: float32 tensor (N, C, H, W).

        Returns:
            float32 tensor (N, num_outputs), on the same device.

        Raises:
            InputError: If the server refuses the images, or answers something else.
            OutageError: If it does not answer in time.
        """
        if not isinstance(images, Tensor):
            raise TypeError("a hosted network cannot be traced")
        size = 1 if self._hosted.one_image else len(images)
        scores = [self._ask(batch) for batch in torch.split(images.detach().cpu(), size)]
        return _as_logits(torch.cat(scores), self._hosted.scores).to(images.device)

    def _ask(self, images: Tensor) -> Tensor:
        if self._hosted.reverses_channels:
            images = images.flip(1)
        if self._hosted.layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        if self._hosted.datatype == "UINT8":
            images = images.round().clamp(0, 255).to(torch.uint8)
        self._pace.wait(len(images))
        tensor = np.ascontiguousarray(images.numpy())
        data = self._server.infer(self._hosted, tensor, self._num_outputs)
        wanted = len(images) * self._num_outputs
        try:
            numbers = np.asarray(data, np.float32)
        except (TypeError, ValueError):
            numbers = np.empty(0, np.float32)
        if numbers.size != wanted:
            raise InputError(
                f"The hosted model at {self._hosted.url} gives {numbers.size:,} numbers for "
                f"{len(images)} images, and the task needs {self._num_outputs:,} for each."
            )
        return torch.from_numpy(numbers.reshape(len(images), self._num_outputs))


class _Pace:
    """Lets the threads of a process send so many images in a second together."""

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def wait(self, num_images: int) -> None:
        """Wait until images may be sent."""
        if self._per_second is None:
            return
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + num_images / self._per_second
        time.sleep(max(0.0, start - time.monotonic()))


def _as_logits(scores: Tensor, kind: str) -> Tensor:
    """Return logits of probabilities; logits and values stay as they are."""
    if kind == "softmax":
        return scores.clamp(min=TINY).log()
    if kind == "sigmoid":
        return (scores.clamp(min=TINY) / (1 - scores).clamp(min=TINY)).log()
    return scores


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    least = error.wait if isinstance(error, _BusyError) else 0.0
    return max(least, BACKOFF(state))


def _is_here(host: str) -> bool:
    return host == "localhost" or is_loopback_address(host.strip("[]"))


def _keys(file: Path | None) -> dict[str, str]:
    """Return the keys of hosts, from lines with a host and its key.

    Raises:
        InputError: If the file cannot be read, others may read it, or a line has another form.
    """
    if file is None:
        return {}
    try:
        if file.stat().st_mode & 0o077:
            raise InputError(f"Others can read the keys in {file}; run: chmod 600 {file}.")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"EAGLERAY_HOSTED_MODEL_KEYS names {file}, which cannot be read ({error})."
        ) from None
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(
            f"{file} has another form than a host and its key on each line, with a space between."
        )
    return {host.lower(): key for host, key in pairs}
