"""Lets one process of this machine at a time into a block, by a lock on a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

__all__ = ["lock_if_writable"]


@contextlib.contextmanager
def lock_if_writable(file: Path, *, max_seconds: float = -1) -> Iterator[None]:
    """Let one process of this machine at a time into the block, if the lock's file can be written.

    The lock ends with the process that holds it, however that ends.

    Args:
        file: The lock's file; it and its folder are made if need be.
        max_seconds: Time after which the block is entered without the lock; negative for none.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # not writable, or not had in time
            stack.enter_context(FileLock(file, timeout=max_seconds))
        yield
