"""Files on a mounted file system: read, and written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from eagleray.io.storage.faults import retry_local

__all__ = [
    "answers",
    "open_file",
    "put_atomic",
    "put_if_absent",
    "read",
    "size_of",
]

_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
)


def answers(question: Callable[[], bool]) -> bool:
    """Ask the file system; a name that it cannot even hold names nothing."""
    try:
        return question()
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: It cannot be opened, or is a named pipe.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL byte, which no file name can hold
        raise FileNotFoundError(str(error)) from error
    if stat.S_ISFIFO(mode):  # opening one would wait for a writer, for ever
        raise OSError("it is a named pipe, not a file")
    return path.open("rb")


def read(path: Path, start: int, length: int | None) -> bytes:
    """Read from a byte on, to the end or a number of bytes."""

    def attempt() -> bytes:
        with open_file(path) as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    return retry_local(attempt)


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
        OSError: It is not there, or is a folder.
    """
    status = retry_local(path.stat)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    return status.st_size


def put_atomic(path: Path, content: bytes) -> None:
    """Write a file, over one that is there."""
    with _written_beside(path, content) as beside:
        beside.replace(path)
        _flush_folder(path.parent)


def put_if_absent(path: Path, content: bytes) -> bool:
    """Write a file if there is none; a link cannot take the place of another file.

    Raises:
        OSError: It cannot be written, or the file system has no hard links.
    """
    with _written_beside(path, content) as beside:
        try:
            os.link(beside, path)
        except FileExistsError:
            # A network mount that lost the first answer says this of our own link.
            if not path.exists() or not path.samefile(beside):
                return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise OSError(
                error.errno,
                f"the file system of {path.parent} has no hard links, and without them two jobs "
                "could both believe that they wrote this file; name an output on another one",
            ) from error
        _flush_folder(path.parent)
    return True


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write a complete, safe file beside the one that is meant; it is gone at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
