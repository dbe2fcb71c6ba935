"""Decoding in a child process that may crash, hang or exhaust its memory, and is replaced.

    with DecodeSandbox(contract, seconds=60, memory_bytes=2 * 2**30) as sandbox:
        image = sandbox.decode(data)    # the same pixels as `decode`, or BadImageError

The child is this module run as a program. It serves image after image over one socket: a request is
a length and the encoded bytes; an answer is a header and the pixels, or the header and a refusal in
JSON. What comes back was made by a decoder that read hostile bytes, so it is checked like any other
input and never unpickled.
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
from eagleray.imaging.decode import DecodedImage, decode
from eagleray.imaging.pillow import load_readers
from eagleray.imaging.probe import probe

__all__ = ["DecodeSandbox"]

SECONDS_TO_START = 120.0  # imports from a cold network disk included
SECONDS_TO_END = 10.0  # of a child that has closed its socket

_REQUEST = struct.Struct("<Q")  # length of the encoded bytes
_ANSWER = struct.Struct("<BIIQ")  # status, upright width and height, length of what follows
_READY, _DECODED, _REFUSED = range(3)

_MAX_REFUSAL_BYTES = 2**16
_MAX_MESSAGE = 1000  # characters of a refusal
_MAX_WORDS = 200  # characters of a decoder's last words in a message
_MAX_PRINTED_BYTES = 2**20  # by one child, to its standard output and error

_NEEDS_PROOF = {Reason.DECODER_CRASH, Reason.OUT_OF_MEMORY}
_BYTES_A_PIXEL = {"webp": 12, "heic": 6, "avif": 6, "jpeg2000": 20}  # that decoders hold at least
_OUT_OF_MEMORY_WORDS = ("memoryerror", "bad_alloc", "out of memory", "insufficient memory")


class DecodeSandbox:
    """Decodes images where they can do no harm; thread-safe, one image at a time.

    The child starts with the first image and is replaced after it died. A death counts against an
    image only when it happens twice, the second time to a child that saw no other image: the first
    may be the late effect of an image before it, or the work of somebody else's signal.

    Args:
        contract: What images become.
        seconds: Wall-clock time for one image, the child's start not included.
        memory_bytes: Address space that one image may take beyond the idle child, its encoded bytes
            included. A limit on Linux only.
    """

    def __init__(self, contract: ImageContract, *, seconds: float, memory_bytes: int) -> None:
        self._contract = contract
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def contract(self) -> ImageContract:
        """What images become."""
        return self._contract

    def decode(self, data: bytes) -> DecodedImage:
        """Turn encoded bytes into the array that the contract describes.

        Raises:
            BadImageError: What `eagleray.imaging.decode` raises for the image; or `timeout`,
                `decoder_crash` or `out_of_memory` when the child did not survive it.
            JobFailedError: No child can be started.
        """
        with self._lock:
            assert not self._closed, "the sandbox is closed"
            try:
                return self._attempt(data)
            except BadImageError as error:
                if error.reason not in _NEEDS_PROOF:
                    raise
            return self._attempt(data)

    def _attempt(self, data: bytes) -> DecodedImage:
        if self._child is None:
            self._child = _Child(self._contract, self._seconds, self._memory_bytes)
        try:
            return self._child.decode(data)
        except BadImageError as error:
            if error.reason.ends_decoder:
                self._end_child()
            raise
        except BaseException:  # an interrupt between request and answer: they would not match again
            self._end_child()
            raise

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def close(self) -> None:
        """End the child. Waits for a decode that another thread has under way."""
        with self._lock:
            self._closed = True
            self._end_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Orders(NamedTuple):
    """What a child is told on its command line."""

    contract: str
    seconds: float
    memory_bytes: int
    parent: int


class _Child:
    """One child process and the socket to it; made ready to decode, or not made at all."""

    def __init__(self, contract: ImageContract, seconds: float, memory_bytes: int) -> None:
        self._contract = contract
        self._seconds = seconds
        orders = _Orders(contract.to_json(), seconds, memory_bytes, os.getpid())
        with contextlib.ExitStack() as resources:
            self._words = resources.enter_context(tempfile.TemporaryFile())
            self._socket, theirs = map(resources.enter_context, socket.socketpair())
            # Linux ends the child when the thread that started it ends, so that thread must stay.
            keeper = resources.enter_context(ThreadPoolExecutor(1, "decode-sandbox"))
            self._process = keeper.submit(_start, orders, theirs, self._words).result()
            resources.callback(self._process.wait)
            resources.callback(self._process.kill)
            theirs.close()
            self._await_ready()
            self._resources = resources.pop_all()

    def _await_ready(self) -> None:
        try:
            self._receive_header(time.monotonic() + SECONDS_TO_START)
        except TimeoutError:
            ending = f"is not ready after {SECONDS_TO_START:g} s"
        except (OSError, EOFError):
            ending = self._ending(words_from=0)
        else:
            return
        raise JobFailedError(f"The process that decodes images {ending}.")

    def end(self) -> None:
        """End the process and give back all that it held."""
        self._resources.close()

    def decode(self, data: bytes) -> DecodedImage:
        """Decode one image; after `timeout` and `decoder_crash` the child is of no more use."""
        words_from = os.fstat(self._words.fileno()).st_size
        deadline = time.monotonic() + self._seconds
        try:
            for part in (_REQUEST.pack(len(data)), data):
                self._wait_until(deadline)
                self._socket.sendall(part)
            return self._receive_image(deadline)
        except TimeoutError:
            raise BadImageError(
                Reason.TIMEOUT, f"decoding took longer than {self._seconds:g} s and was ended"
            ) from None
        except (OSError, EOFError):
            raise self._verdict(words_from) from None

    def _receive_image(self, deadline: float) -> DecodedImage:
        status, width, height, length = self._receive_header(deadline)
        if status == _DECODED and length == np.prod(self._contract.shape):
            pixels = np.empty(self._contract.shape, np.uint8)
            self._receive_into(pixels.reshape(-1).data, deadline)
            return DecodedImage(pixels, width, height)
        if status == _REFUSED and length <= _MAX_REFUSAL_BYTES:
            refusal = bytearray(length)
            self._receive_into(memoryview(refusal), deadline)
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                reason, message = json.loads(refusal)
                raise BadImageError(Reason(reason), str(message))
        raise BadImageError(Reason.DECODER_CRASH, "the decoder's answer makes no sense")

    def _receive_header(self, deadline: float) -> tuple[int, int, int, int]:
        header = bytearray(_ANSWER.size)
        self._receive_into(memoryview(header), deadline)
        status, width, height, length = _ANSWER.unpack(header)
        return status, width, height, length

    def _receive_into(self, view: memoryview, deadline: float) -> None:
        while view:
            self._wait_until(deadline)
            num_received = self._socket.recv_into(view)
            if num_received == 0:
                raise EOFError
            view = view[num_received:]

    def _wait_until(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 1e-6))  # 0 would mean: never wait

    def _verdict(self, words_from: int) -> BadImageError:
        """Say what a child died of that closed its socket in the middle of an image."""
        ending = self._ending(words_from)
        # Nobody but the kernel, out of memory, is expected to send this signal.
        by_kernel = self._process.returncode == -signal.SIGKILL
        if by_kernel or _tells_of_memory(ending):
            return BadImageError(
                Reason.OUT_OF_MEMORY, f"the decoder ran out of memory: it {ending}"
            )
        return BadImageError(Reason.DECODER_CRASH, f"the decoder {ending}")

    def _ending(self, words_from: int) -> str:
        """Wait for the end of the process and describe it, its last words included."""
        try:
            code = self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            return "closed its connection and went on running"
        ending = f"died of {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        size = os.fstat(self._words.fileno()).st_size
        start = max(words_from, size - 4 * _MAX_WORDS)
        words = os.pread(self._words.fileno(), size - start, start).decode(errors="replace")
        lines = words.strip().splitlines()
        return f"{ending} ({lines[-1][:_MAX_WORDS]})" if lines else ending


def _start(orders: _Orders, stdin: socket.socket, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a child; to be called in the thread that it is to die with."""
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "eagleray.imaging.sandbox", json.dumps(orders)],
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


def _tells_of_memory(text: str) -> bool:
    return any(words in text.lower() for words in _OUT_OF_MEMORY_WORDS)


def _child_environment() -> dict[str, str]:
    """Return an environment in which the child finds this package, and numpy starts no threads."""
    source_root = str(Path(__file__).parents[2])
    path = [entry for entry in (os.environ.get("PYTHONPATH"), source_root) if entry]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OPENBLAS_NUM_THREADS": "1",  # each thread would take address space
    }


# --- the child --------------------------------------------------------------------------------


def main() -> None:
    """Serve one parent until it closes the socket, which is standard input."""
    orders = _Orders(*json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    exit_with_parent(orders.parent)
    connection = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    cv2.setNumThreads(1)
    load_readers(ImageContract.from_json(orders.contract).formats)  # before memory is counted
    _limit_resources(orders.memory_bytes)
    _serve(connection, orders)


def _limit_resources(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower_limit(resource.RLIMIT_FSIZE, _MAX_PRINTED_BYTES)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)
        # Where the machine itself runs short, the kernel is to end this process and no other.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def _lower_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _serve(connection: socket.socket, orders: _Orders) -> None:
    contract = ImageContract.from_json(orders.contract)
    requests = connection.makefile("rb")
    connection.sendall(_ANSWER.pack(_READY, 0, 0, 0))
    while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
        # The parent keeps the time. Should it be gone, this ends a decoder that hangs.
        signal.setitimer(signal.ITIMER_REAL, 2 * orders.seconds)
        data = requests.read(*_REQUEST.unpack(header))
        try:
            image = decode(data, contract)
        except BadImageError as error:
            refusal = json.dumps(_refusal(error, data, orders.memory_bytes)).encode()
            connection.sendall(_ANSWER.pack(_REFUSED, 0, 0, len(refusal)) + refusal)
        else:
            size = image.pixels.nbytes
            connection.sendall(_ANSWER.pack(_DECODED, image.width, image.height, size))
            connection.sendall(image.pixels.data)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _refusal(error: BadImageError, data: bytes, memory_bytes: int) -> tuple[Reason, str]:
    """Return reason and message; some decoders call it damage when they get no memory."""
    message = error.message[:_MAX_MESSAGE]
    starved = error.reason is Reason.OUT_OF_MEMORY
    if error.reason is Reason.UNREADABLE:
        starved = _tells_of_memory(message) or _is_too_large(data, memory_bytes)
    if not starved:
        return error.reason, message
    return Reason.OUT_OF_MEMORY, f"{message}, within {memory_bytes / 2**20:,.0f} MiB"


def _is_too_large(data: bytes, memory_bytes: int) -> bool:
    """Whether memory is lacking for a format whose decoder never says why it gave up."""
    try:
        header = probe(data)
    except BadImageError:  # the header itself is what cannot be read
        return False
    return _BYTES_A_PIXEL.get(header.format, 0) * header.width * header.height > memory_bytes


if __name__ == "__main__":
    main()
