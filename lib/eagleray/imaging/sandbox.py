"""Decodes images in a child process, which is replaced if it crashes, hangs or exhausts memory.

    with DecodeSandbox(contract, seconds=60, memory_bytes=2 * 2**30) as sandbox:
        image = sandbox.decode(data)    # the same pixels as `decode`, or BadImageError

The child is this module run as a program. It handles one image after another over a socket: a
request is a length and the encoded bytes; a response is a header and the pixels, or a header and an
error in JSON. Responses are untrusted, as a decoder that read hostile bytes made them, so they are
checked like any other input and never unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, Self

import cv2
import numpy as np

from eagleray.core.errors import BadImageError, JobFailedError, Reason
from eagleray.core.parent_death import exit_with_parent
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.decode import DecodedImage, decode, decode_upright
from eagleray.imaging.pillow import load_readers
from eagleray.imaging.probe import probe

__all__ = ["DecodeSandbox"]

_START_SECONDS = 120.0  # with imports from a cold network disk
_EXIT_SECONDS = 10.0  # after the child has closed its socket

_REQUEST = struct.Struct("<Q")  # length of the encoded bytes
_RESPONSE = struct.Struct("<BIIQ")  # status, upright width and height, length of what follows
_READY, _DECODED, _FAILED = range(3)

_MAX_ERROR_BYTES = 2**16
_MAX_MESSAGE_LENGTH = 1000
_MAX_OUTPUT_LENGTH = 200  # characters of a child's output in a message
_MAX_OUTPUT_BYTES = 2**20  # of a child's standard output and error

_RETRIED_REASONS = {Reason.DECODER_CRASH, Reason.OUT_OF_MEMORY}
# Bytes that decoders allocate at least.
_BYTES_PER_PIXEL = {"webp": 12, "heic": 6, "avif": 6, "jpeg2000": 20}
_OUT_OF_MEMORY_PHRASES = ("memoryerror", "bad_alloc", "out of memory", "insufficient memory")


class DecodeSandbox:
    """Decodes images in a child process; thread-safe, one image at a time.

    The child starts with the first image and is replaced when it dies. An image is blamed only if a
    second, fresh child dies as well: the first death may be a late effect of an earlier image, or
    caused by a signal from outside.

    Args:
        contract: The contract of the images.
        seconds: Time-out of one image, without the child's start.
        memory_bytes: Address space of one image beyond the idle child, with its encoded bytes. It
            is enforced on Linux only.
        whole: Whether images are decoded at their own size, as by `decode_upright`.
    """

    def __init__(
        self, contract: ImageContract, *, seconds: float, memory_bytes: int, whole: bool = False
    ) -> None:
        self._contract, self._whole = contract, whole
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def contract(self) -> ImageContract:
        """The contract of the images."""
        return self._contract

    def decode(self, data: bytes) -> DecodedImage:
        """Decode an image into the array that the contract describes.

        Raises:
            BadImageError: As in `eagleray.imaging.decode`; or with reason `timeout`,
                `decoder_crash` or `out_of_memory` if the child did not survive.
            JobFailedError: If no child can be started.
        """
        with self._lock:
            assert not self._closed, "the sandbox is closed"
            try:
                return self._attempt(data)
            except BadImageError as error:
                if error.reason not in _RETRIED_REASONS:
                    raise
            return self._attempt(data)

    def _attempt(self, data: bytes) -> DecodedImage:
        if self._child is None:
            self._child = _Child(
                self._contract, self._seconds, self._memory_bytes, whole=self._whole
            )
        try:
            return self._child.decode(data)
        except BadImageError as error:
            if error.reason.ends_its_decoder:
                self._end_child()
            raise
        except BaseException:  # an interrupt would leave request and response out of step
            self._end_child()
            raise

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def close(self) -> None:
        """End the child, after a running decode of another thread has finished."""
        with self._lock:
            self._closed = True
            self._end_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ChildSpec(NamedTuple):
    """Arguments of a child on its command line."""

    contract: str
    seconds: float
    memory_bytes: int
    parent: int
    whole: bool


class _Child:
    """A child process that is ready to decode, and the socket to it."""

    def __init__(
        self, contract: ImageContract, seconds: float, memory_bytes: int, *, whole: bool
    ) -> None:
        self._contract, self._whole = contract, whole
        self._seconds = seconds
        spec = _ChildSpec(contract.to_json(), seconds, memory_bytes, os.getpid(), whole)
        with contextlib.ExitStack() as resources:
            self._output = resources.enter_context(tempfile.TemporaryFile())
            self._socket, child_socket = map(resources.enter_context, socket.socketpair())
            # Linux ends the child with the thread that started it, so that thread must live on.
            starter = resources.enter_context(ThreadPoolExecutor(1, "decode-sandbox"))
            self._process = starter.submit(_start, spec, child_socket, self._output).result()
            resources.callback(self._process.wait)
            resources.callback(self._process.kill)
            child_socket.close()
            self._await_ready()
            self._resources = resources.pop_all()

    def _await_ready(self) -> None:
        try:
            self._receive_header(time.monotonic() + _START_SECONDS)
        except TimeoutError:
            description = f"is not ready after {_START_SECONDS:g} s"
        except (OSError, EOFError):
            description = self._describe_exit(output_start=0)
        else:
            return
        raise JobFailedError(f"The process that decodes images {description}.")

    def end(self) -> None:
        """End the process and release its resources."""
        self._resources.close()

    def decode(self, data: bytes) -> DecodedImage:
        """Decode one image; after `timeout` and `decoder_crash` the child is unusable."""
        output_start = os.fstat(self._output.fileno()).st_size
        deadline = time.monotonic() + self._seconds
        try:
            for content in (_REQUEST.pack(len(data)), data):
                self._wait_until(deadline)
                self._socket.sendall(content)
            return self._receive_image(deadline)
        except TimeoutError:
            raise BadImageError(
                Reason.TIMEOUT, f"decoding took longer than {self._seconds:g} s and was ended"
            ) from None
        except (OSError, EOFError):
            raise self._exit_error(output_start) from None

    def _receive_image(self, deadline: float) -> DecodedImage:
        status, width, height, length = self._receive_header(deadline)
        shape = self._contract.shape
        if self._whole and width * height <= self._contract.max_pixels:
            shape = (height, width, self._contract.channels)
        if status == _DECODED and length == np.prod(shape):
            pixels = np.empty(shape, np.uint8)
            self._receive_into(pixels.reshape(-1).data, deadline)
            return DecodedImage(pixels, width, height)
        if status == _FAILED and length <= _MAX_ERROR_BYTES:
            content = bytearray(length)
            self._receive_into(memoryview(content), deadline)
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                reason, message = json.loads(content)
                raise BadImageError(Reason(reason), str(message))
        raise BadImageError(Reason.DECODER_CRASH, "the decoder sent an invalid response")

    def _receive_header(self, deadline: float) -> tuple[int, int, int, int]:
        header = bytearray(_RESPONSE.size)
        self._receive_into(memoryview(header), deadline)
        status, width, height, length = _RESPONSE.unpack(header)
        return status, width, height, length

    def _receive_into(self, view: memoryview, deadline: float) -> None:
        while view:
            self._wait_until(deadline)
            num_received = self._socket.recv_into(view)
            if num_received == 0:
                raise EOFError
            view = view[num_received:]

    def _wait_until(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 1e-6))  # 0 means non-blocking

    def _exit_error(self, output_start: int) -> BadImageError:
        """Return the error of an image during which the child closed its socket."""
        description = self._describe_exit(output_start)
        # Only the kernel is expected to send this signal, when memory is exhausted.
        by_kernel = self._process.returncode == -signal.SIGKILL
        if by_kernel or _mentions_memory(description):
            return BadImageError(
                Reason.OUT_OF_MEMORY, f"the decoder ran out of memory: it {description}"
            )
        return BadImageError(Reason.DECODER_CRASH, f"the decoder {description}")

    def _describe_exit(self, output_start: int) -> str:
        """Wait for the process to exit, and describe it with its last line of output."""
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its connection and kept running"
        exit_text = f"died of {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        size = os.fstat(self._output.fileno()).st_size
        start = max(output_start, size - 4 * _MAX_OUTPUT_LENGTH)
        output = os.pread(self._output.fileno(), size - start, start).decode(errors="replace")
        lines = output.strip().splitlines()
        return f"{exit_text} ({lines[-1][:_MAX_OUTPUT_LENGTH]})" if lines else exit_text


def _start(spec: _ChildSpec, stdin: socket.socket, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a child, which ends with the calling thread."""
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "eagleray.imaging.sandbox", json.dumps(spec)],
            stdin=stdin.fileno(),
            stdout=output,
            stderr=output,
            env=_child_environment(),
        )
    except OSError as error:
        raise JobFailedError(f"The process that decodes images cannot start: {error}.") from error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _mentions_memory(text: str) -> bool:
    return any(phrase in text.lower() for phrase in _OUT_OF_MEMORY_PHRASES)


def _child_environment() -> dict[str, str]:
    """Return an environment in which the child finds this package and numpy starts no threads."""
    source_root = str(Path(__file__).parents[2])
    path = [entry for entry in (os.environ.get("PYTHONPATH"), source_root) if entry]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OPENBLAS_NUM_THREADS": "1",  # each thread takes address space
    }


# --- the child --------------------------------------------------------------------------------


def main() -> None:
    """Serve the parent until it closes the socket, which is standard input."""
    spec = _ChildSpec(*json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    exit_with_parent(spec.parent)
    connection = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as null:
        os.dup2(null.fileno(), 0)
    cv2.setNumThreads(1)
    load_readers(ImageContract.from_json(spec.contract).formats)  # before the memory limit applies
    _limit_resources(spec.memory_bytes)
    _serve(connection, spec)


def _limit_resources(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower_limit(resource.RLIMIT_FSIZE, _MAX_OUTPUT_BYTES)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)
        # If the machine runs out of memory, the kernel ends this process first.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def _lower_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _serve(connection: socket.socket, spec: _ChildSpec) -> None:
    contract = ImageContract.from_json(spec.contract)
    requests = connection.makefile("rb")
    connection.sendall(_RESPONSE.pack(_READY, 0, 0, 0))
    while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
        # The parent enforces the time-out. If it is gone, this ends a decoder that hangs.
        signal.setitimer(signal.ITIMER_REAL, 2 * spec.seconds)
        data = requests.read(*_REQUEST.unpack(header))
        try:
            image = (decode_upright if spec.whole else decode)(data, contract)
        except BadImageError as error:
            content = json.dumps(_error_content(error, data, spec.memory_bytes)).encode()
            connection.sendall(_RESPONSE.pack(_FAILED, 0, 0, len(content)) + content)
        else:
            size = image.pixels.nbytes
            connection.sendall(_RESPONSE.pack(_DECODED, image.width, image.height, size))
            connection.sendall(image.pixels.data)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _error_content(error: BadImageError, data: bytes, memory_bytes: int) -> tuple[Reason, str]:
    """Return reason and message; some decoders report a lack of memory as damage."""
    message = error.message[:_MAX_MESSAGE_LENGTH]
    out_of_memory = error.reason is Reason.OUT_OF_MEMORY
    if error.reason is Reason.UNREADABLE:
        out_of_memory = _mentions_memory(message) or _is_too_large(data, memory_bytes)
    if not out_of_memory:
        return error.reason, message
    return Reason.OUT_OF_MEMORY, f"{message}, within {memory_bytes / 2**20:,.0f} MiB"


def _is_too_large(data: bytes, memory_bytes: int) -> bool:
    """Whether an image needs more memory than allowed, in formats whose decoders never say so."""
    try:
        header = probe(data)
    except BadImageError:  # the header itself is damaged
        return False
    return _BYTES_PER_PIXEL.get(header.format, 0) * header.width * header.height > memory_bytes


if __name__ == "__main__":
    main()
