"""Images that kill the process that decodes them, in processes that run under the test hook.

environment = {**os.environ, **killer_environment()}    # for the process, or Ray, to start in
data = killer_jpeg("SEGV")                              # for anybody else a sound JPEG
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import psutil

from tests.support.images import Pixels, encode, photo

__all__ = ["KILLERS", "killer_environment", "killer_jpeg", "sandbox_processes"]

KILLERS = ("SEGV", "ABORT", "BAD_ALLOC", "SIGKILL", "EXIT", "HANG", "GIL", "MEMORY", "CHATTER")
"""SEGV, ABORT, SIGKILL: a signal; BAD_ALLOC: what C++ prints and does when memory runs out; EXIT:
exit code 3; HANG: never returns; GIL: never returns and holds the GIL; MEMORY: takes 64 MiB again
and again; CHATTER: harmless, prints to standard output."""

HOOKS = Path(__file__).parent / "hooks"


def killer_jpeg(kind: str, pixels: Pixels | None = None) -> bytes:
    """Return a small, valid JPEG with a comment that the test hook knows.

    Args:
        kind: One of `KILLERS`.
        pixels: The picture, uint8 (height, width, 3).
    """
    assert kind in KILLERS
    comment = f"EAGLERAY-TEST:{kind};".encode()
    jpeg = encode(photo() if pixels is None else pixels, "jpeg", quality=90)
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:]


def killer_environment() -> dict[str, str]:
    """Return the variables that turn the hook on in every Python started under them."""
    path = [str(HOOKS), os.environ.get("PYTHONPATH", "")]
    return {"EAGLERAY_TEST_KILLERS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}


def sandbox_processes() -> list[psutil.Process]:
    """Return the sandboxes' processes that this process has, zombies included."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() == psutil.STATUS_ZOMBIE or "eagleray.imaging.sandbox" in child.cmdline()
    ]
