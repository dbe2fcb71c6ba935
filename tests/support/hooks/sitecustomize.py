"""Test hook: with EAGLERAY_TEST_KILLERS=1, images that carry a marker kill whoever decodes them.

Python runs this file at its start when this folder is on PYTHONPATH. It waits until the decode path
is imported, and then stands before the two library calls that every decode ends in. An image
without a marker goes through untouched.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
DECODE_PATH = "eagleray.imaging.decode"
MARKER = b"EAGLERAY-TEST:"


def segv() -> None:
    import ctypes

    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def bad_alloc() -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def sigkill() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def hang() -> NoReturn:
    import time

    while True:
        time.sleep(3600)


def hang_with_the_gil() -> NoReturn:
    import ctypes

    while True:
        ctypes.PyDLL(None).sleep(3600)


def take_memory() -> NoReturn:
    step, page = 64 * 2**20, 4096
    taken = []
    while True:
        block = bytearray(step)
        block[::page] = b"\1" * (step // page)  # a page is real once it is written to
        taken.append(block)


def chatter() -> None:
    os.write(1, b"decoder: hello\n" * 1000)
    print("decoder: hello")


KILLERS: dict[bytes, Callable[[], None]] = {
    b"SEGV": segv,
    b"ABORT": abort,
    b"BAD_ALLOC": bad_alloc,
    b"SIGKILL": sigkill,
    b"EXIT": leave,
    b"HANG": hang,
    b"GIL": hang_with_the_gil,
    b"MEMORY": take_memory,
    b"CHATTER": chatter,
}


def kill_if_marked(data: bytes) -> None:
    start = data.find(MARKER)
    if start >= 0:
        kind = data[start + len(MARKER) :].split(b";", 1)[0]
        os.write(2, b"test hook: decoding " + kind + b"\n")
        KILLERS[kind]()


def stand_before_the_decoders(_: ModuleType) -> None:
    import simplejpeg
    from PIL import Image

    decode_jpeg, open_image = simplejpeg.decode_jpeg, Image.open

    def decode_jpeg_unless_marked(data: bytes, *args: Any, **options: Any) -> Any:
        kill_if_marked(data)
        return decode_jpeg(data, *args, **options)

    def open_image_unless_marked(fp: Any, *args: Any, **options: Any) -> Any:
        if hasattr(fp, "getvalue"):
            kill_if_marked(fp.getvalue())
        return open_image(fp, *args, **options)

    simplejpeg.decode_jpeg = decode_jpeg_unless_marked
    Image.open = open_image_unless_marked


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls back once, when a module has been imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_call_back(module: ModuleType) -> None:
            run(module)
            self.then(module)

        spec.loader.exec_module = run_and_call_back  # type: ignore[method-assign]
        return spec


def run_the_next_sitecustomize() -> None:
    """Run the one that this file hides, if there is one."""
    others = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    if os.environ.get("EAGLERAY_TEST_KILLERS") == "1":
        sys.meta_path.insert(0, AfterImport(DECODE_PATH, stand_before_the_decoders))
    run_the_next_sitecustomize()
