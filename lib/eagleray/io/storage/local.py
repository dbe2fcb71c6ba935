"""Reads files on mounted file systems, and writes them atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from eagleray.io.storage.retry import retry_local

__all__ = [
    "false_on_error",
    "open_file",
    "put_atomic",
    "put_if_absent",
    "read",
    "size_of",
]

_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
)


def false_on_error(check: Callable[[], bool]) -> bool:
    """Return the result of a check, and False for names that the file system cannot hold."""
    try:
        return check()
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: If it cannot be opened, or is a named pipe.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL byte, which no file name can hold
        raise FileNotFoundError(str(error)) from error
    if stat.S_ISFIFO(mode):  # opening one blocks until there is a writer
        raise OSError("it is a named pipe, not a file")
    return path.open("rb")


def read(path: Path, start: int, length: int | None) -> bytes:
    """Read `length` bytes from byte `start` on, or to the end of the file."""

    def attempt() -> bytes:
        with open_file(path) as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    return retry_local(attempt)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: If it does not exist, or is a folder.
    """
    status = retry_local(path.stat)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    return status.st_size


def put_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically, replacing an existing one."""
    with _temporary_file(path, content) as temporary:
        temporary.replace(path)
        _flush_folder(path.parent)


def put_if_absent(path: Path, content: bytes) -> bool:
    """Write a file atomically if there is none: a hard link never replaces another file.

    Raises:
        OSError: If it cannot be written, or the file system has no hard links.
    """
    with _temporary_file(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network mount that lost the first response reports our own link as existing.
            if not path.exists() or not path.samefile(temporary):
                return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise OSError(
                error.errno,
                f"the file system of {path.parent} has no hard links, and without them two jobs "
                "could both assume that they wrote this file; use an output on another one",
            ) from error
        _flush_folder(path.parent)
    return True


@contextlib.contextmanager
def _temporary_file(path: Path, content: bytes) -> Iterator[Path]:
    """Write and flush a temporary file next to `path`; it is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
