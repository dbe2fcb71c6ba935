"""The sandbox: whatever an image does to its decoder, the parent gets pixels or a reason."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from eagleray.core.errors import BadImageError, JobFailedError, Reason
from eagleray.imaging import FORMATS, DecodedImage, ImageContract, decode, named_contract
from eagleray.imaging.sandbox import DecodeSandbox
from tests.support.images import LOSSLESS, bombs, cmyk_jpeg, encode, gray16, oriented, photo
from tests.support.killers import killer_jpeg, sandbox_processes

ROOT = Path(__file__).parents[3]
MIB = 2**20
FAST = named_contract("fast", formats=FORMATS)
DEADLINE = 60.0

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def sandbox(contract: ImageContract = FAST, **limits: Any) -> DecodeSandbox:
    """Return a sandbox with room for everything; `limits` override."""
    return DecodeSandbox(contract, **{"seconds": DEADLINE, "memory_bytes": 512 * MIB, **limits})


def refusal(call: Callable[[], object]) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        call()
    return caught.value


def only_child() -> psutil.Process:
    (child,) = sandbox_processes()
    return child


def same(one: DecodedImage, other: DecodedImage) -> bool:
    size = (one.width, one.height) == (other.width, other.height)
    return size and np.array_equal(one.pixels, other.pixels)


def sound_images() -> list[bytes]:
    """Return one image of every format, and the odd ones among JPEG and PNG."""
    plain = [encode(photo(seed=1), name, **LOSSLESS.get(name, {})) for name in FORMATS]
    return [*plain, oriented("jpeg", 6), cmyk_jpeg(), encode(gray16()), encode(photo(700, 500))]


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    assert sandbox_processes() == []


# --- each reason, from a real child ---


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        ("SEGV", Reason.DECODER_CRASH, "died of SIGSEGV"),
        ("ABORT", Reason.DECODER_CRASH, "died of SIGABRT"),
        ("EXIT", Reason.DECODER_CRASH, "ended with exit code 3"),
        ("HANG", Reason.TIMEOUT, "took longer than 1 s"),
        ("GIL", Reason.TIMEOUT, "took longer than 1 s"),
        ("MEMORY", Reason.OUT_OF_MEMORY, "no memory for 97 x 61 pixels, within 512 MiB"),
        ("BAD_ALLOC", Reason.OUT_OF_MEMORY, "std::bad_alloc"),
        ("SIGKILL", Reason.OUT_OF_MEMORY, "died of SIGKILL"),
    ],
)
def test_a_killer_gets_its_reason(killers: None, kind: str, reason: Reason, message: str) -> None:
    seconds = 1.0 if reason is Reason.TIMEOUT else DEADLINE
    with sandbox(seconds=seconds) as box:
        error = refusal(lambda: box.decode(killer_jpeg(kind)))
        assert error.reason is reason
        assert message in error.message
        assert same(box.decode(encode(photo())), decode(encode(photo()), FAST))


def test_a_refusal_is_the_one_of_decode() -> None:
    damaged = [encode(photo(), "jpeg")[:-300], encode(photo())[:500], b"BM" + bytes(9)]
    damaged += [b"\xff\xd8\xff\xd9", encode(photo()).replace(b"IHDR", b"tEXt")]
    with sandbox() as box:
        for data in [b"", b"hello world", *damaged, *(bomb.data for bomb in bombs())]:
            expected = refusal(lambda data=data: decode(data, FAST))  # type: ignore[misc]
            error = refusal(lambda data=data: box.decode(data))  # type: ignore[misc]
            assert (error.reason, error.message) == (expected.reason, expected.message)


# --- memory ---

LARGE: dict[str, dict[str, Any]] = {
    "jpeg": {"progressive": True},
    "png": {"compress_level": 1},
    "webp": {"method": 0},
    "gif": {},
    "tiff": {"compression": "tiff_lzw"},
    "bmp": {},
    "heic": {"enc_params": {"preset": "ultrafast"}},
    "avif": {"speed": 10},
    "jpeg2000": {},
}


@needs_linux
@pytest.mark.parametrize("file_format", LARGE)
def test_an_image_that_needs_more_memory_than_there_is(file_format: str) -> None:
    pixels = np.zeros((3000, 4000, 3), np.uint8)
    pixels[1000:2000, 1000:3000] = (250, 120, 30)
    data = encode(pixels, file_format, **LARGE[file_format])
    with sandbox(memory_bytes=len(data) + 16 * MIB) as box:
        assert refusal(lambda: box.decode(data)).reason is Reason.OUT_OF_MEMORY
        assert same(box.decode(encode(photo())), decode(encode(photo()), FAST))
    with sandbox() as box:
        assert same(box.decode(data), decode(data, FAST))


@needs_linux
def test_an_encoded_image_larger_than_memory() -> None:
    with sandbox(memory_bytes=16 * MIB) as box:
        error = refusal(lambda: box.decode(encode(photo(), "jpeg") + bytes(32 * MIB)))
    assert error.reason is Reason.OUT_OF_MEMORY


def test_damage_is_not_taken_for_a_lack_of_memory() -> None:
    data = bytearray(encode(photo(400, 300), "webp", **LOSSLESS["webp"]))
    data[40:4000] = bytes(3960)
    with sandbox() as box:
        assert refusal(lambda: box.decode(bytes(data))).reason is Reason.UNREADABLE


# --- the good ones ---


@pytest.mark.parametrize(
    "contract",
    [
        FAST,
        named_contract("torchvision-reference", size=64, formats=FORMATS),
        named_contract("whole-image", size=48, color="gray", formats=FORMATS),
    ],
    ids=["fast", "reference", "gray"],
)
def test_good_images_between_killers_have_the_pixels_of_decode(
    killers: None, contract: ImageContract
) -> None:
    with sandbox(contract, seconds=1.5) as box:
        for number, data in enumerate(sound_images()):
            if number % 3 == 0:
                kind = ("SEGV", "HANG", "MEMORY", "EXIT")[number // 3 % 4]
                refusal(lambda kind=kind: box.decode(killer_jpeg(kind)))  # type: ignore[misc]
            assert same(box.decode(data), decode(data, contract))


def test_a_decoder_that_prints_disturbs_nothing(
    killers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = killer_jpeg("CHATTER")
    with sandbox() as box:
        for _ in range(3):
            assert same(box.decode(data), decode(data, FAST))
    assert capfd.readouterr() == ("", "")


def test_threads_share_a_sandbox() -> None:
    images = [encode(photo(seed=seed), "jpeg", quality=90) for seed in range(40)]
    with sandbox() as box, ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(box.decode, images))
    assert all(same(one, decode(data, FAST)) for one, data in zip(decoded, images, strict=True))


# --- the child's life ---


def test_one_child_serves_image_after_image_despite_their_faults() -> None:
    with sandbox() as box:
        assert sandbox_processes() == []  # it starts with the first image
        box.decode(encode(photo()))
        first = only_child()
        for data in (b"hello world", encode(photo(), "jpeg")[:-300]):
            refusal(lambda data=data: box.decode(data))  # type: ignore[misc]
        box.decode(encode(photo()))
        assert only_child() == first


def test_the_child_outlives_the_thread_that_decoded_first() -> None:
    with sandbox() as box:
        thread = threading.Thread(target=box.decode, args=(encode(photo()),))
        thread.start()
        thread.join()
        first = only_child()
        box.decode(encode(photo()))
        assert only_child() == first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_an_image_is_not_blamed_for_what_befell_the_child_before(number: int) -> None:
    with sandbox() as box:
        box.decode(encode(photo()))
        first = only_child()
        first.send_signal(number)
        assert same(box.decode(encode(photo())), decode(encode(photo()), FAST))
        assert only_child() != first


def test_the_child_leaves_an_interrupt_to_its_parent() -> None:
    with sandbox() as box:
        box.decode(encode(photo()))
        child = only_child()
        child.send_signal(signal.SIGINT)
        box.decode(encode(photo()))
        assert only_child() == child


@needs_linux
def test_an_interrupt_leaves_no_response_behind_for_the_next_image(
    killers: None, request: pytest.FixtureRequest
) -> None:
    # Tests that run in the background may ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with sandbox() as box:
        box.decode(encode(photo()))

        def interrupt() -> None:
            await_word(Path(f"/proc/{only_child().pid}/fd/2"), b"decoding HANG")
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            box.decode(killer_jpeg("HANG"))
        thread.join()
        assert same(box.decode(encode(photo(seed=7))), decode(encode(photo(seed=7)), FAST))


def test_fifty_crashes_leave_no_zombie_no_file_and_no_thread(killers: None) -> None:
    with sandbox() as box:
        box.decode(encode(photo()))
        before = (psutil.Process().num_fds(), threading.active_count())
        seen = {only_child().pid}
        for _ in range(25):  # a crash counts when it happens twice
            assert refusal(lambda: box.decode(killer_jpeg("SEGV"))).reason is Reason.DECODER_CRASH
            assert sandbox_processes() == []
        box.decode(encode(photo()))
        assert only_child().pid not in seen
        assert (psutil.Process().num_fds(), threading.active_count()) == before


ORPHAN = """
import psutil
from eagleray.imaging import named_contract
from eagleray.imaging.sandbox import DecodeSandbox
from tests.support.killers import killer_jpeg
from tests.support.images import encode, photo

box = DecodeSandbox(named_contract("fast"), seconds=600, memory_bytes=2**29)
box.decode(encode(photo()))
print(psutil.Process().children()[0].pid, flush=True)
box.decode(killer_jpeg("GIL"))
"""


@needs_linux
def test_the_child_dies_with_its_parent_even_while_it_hangs(killers: None) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = int(parent.stdout.readline())
        handle = os.pidfd_open(child)
        try:
            await_word(Path(f"/proc/{child}/fd/2"), b"decoding GIL")
            parent.kill()
            ready, _, _ = select.select([handle], [], [], DEADLINE)
            assert ready == [handle], "the child lives on"
        finally:
            os.close(handle)


def await_word(file: Path, word: bytes) -> None:
    deadline = time.monotonic() + DEADLINE
    while word not in file.read_bytes():
        assert time.monotonic() < deadline, f"{file} never said {word!r}"
        time.sleep(0.01)


@needs_linux
def test_the_child_writes_no_core_and_is_the_first_that_the_kernel_ends() -> None:
    with sandbox() as box:
        box.decode(encode(photo()))
        child = only_child()
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"


def test_the_child_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, eagleray.imaging.sandbox; "
        "print([name for name in ('torch', 'ray', 'mlflow', 'pandas') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


# --- a child that is none ---


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("/nonexistent/python", "cannot start: .*No such file"),
        ("#!/bin/sh\necho 'no module named cv2' >&2; exit 7", r"exit code 7 \(no module named cv2"),
        ("#!/bin/sh\nkill -9 $$", "died of SIGKILL"),
    ],
)
def test_a_child_that_cannot_start_is_no_image_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable(tmp_path, program))
    with sandbox() as box, pytest.raises(JobFailedError, match=message):
        box.decode(encode(photo()))


LIAR = """#!{python}
import socket, struct
connection = socket.socket(fileno=0)
answer = struct.Struct("<BIIQ")
connection.sendall(answer.pack(0, 0, 0, 0))
connection.recv(1)
connection.sendall({answer})
while connection.recv(2**16):
    pass
"""


@pytest.mark.parametrize(
    "answer",
    [
        "answer.pack(9, 1, 1, 0)",
        "answer.pack(1, 1, 1, 2**60)",
        "answer.pack(1, 1, 1, 10) + bytes(10)",
        "answer.pack(2, 0, 0, 2**60)",
        "answer.pack(2, 0, 0, 4) + b'nope'",
        "answer.pack(2, 0, 0, 11) + b'[\"fine\", 1]'",
        "answer.pack(2, 0, 0, 60000) + b'[' * 60000",
    ],
)
def test_a_child_that_was_taken_over_cannot_do_more_than_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    program = LIAR.format(python=sys.executable, answer=answer)
    monkeypatch.setattr(sys, "executable", executable(tmp_path, program))
    with sandbox() as box:
        error = refusal(lambda: box.decode(encode(photo())))
    assert error.reason is Reason.DECODER_CRASH
    assert "invalid response" in error.message


def executable(folder: Path, program: str) -> str:
    """Return the path of a program, written first when its text is given."""
    if not program.startswith("#!"):
        return program
    file = folder / "program"
    file.write_text(program)
    file.chmod(0o755)
    return str(file)
