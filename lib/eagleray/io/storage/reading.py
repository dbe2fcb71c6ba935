"""Files and parts of files as bytes, and remote ones opened for readers that jump about."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from eagleray.io.storage import local
from eagleray.io.storage.faults import error_code, wrap_as_os_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.remote import Remote, open_remote

__all__ = ["open_seekable", "read_bytes", "read_range"]

_READAHEAD = 2**20
_NO_SUCH_RANGE = frozenset({"InvalidRange", "416"})


def read_bytes(location: str, *, limit: int | None = None) -> bytes:
    """Read a file whole, or its first `limit` bytes.

    Raises:
        OSError: Whatever went wrong; `FileNotFoundError` when nothing is there,
            `StorageUnavailableError` when the storage is at fault and not the file.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return local.read(local_path(location), 0, limit)
    with wrap_as_os_error(location):
        remote = open_remote(location)
        if limit is None:
            # A single request: no question for the size, and never parts of two versions.
            options = {"max_concurrency": 1} if remote.is_s3 else {}
            return _read(remote, lambda: remote.filesystem.cat_file(remote.name, **options))
        # S3 has no range of nothing.
        return _read_part(remote, 0, max(limit, 1))[:limit]


def read_range(location: str, start: int, length: int) -> bytes:
    """Read `length` bytes from byte `start` on; fewer where the file ends.

    Raises:
        OSError: As for `read_bytes`.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return local.read(local_path(location), start, length)
    with wrap_as_os_error(location):
        remote = open_remote(location)
        return _read_part(remote, start, length) if length else b""


def _read_part(remote: Remote, start: int, length: int) -> bytes:
    return _read(
        remote,
        lambda: remote.filesystem.cat_file(remote.name, start=start, end=start + length),
    )[:length]


def _read(remote: Remote, call: Callable[[], bytes]) -> bytes:
    try:
        return remote.patiently(call)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error_code(error) in _NO_SUCH_RANGE:  # the file ends before the range begins
            return b""
        if not remote.is_s3 and remote.filesystem.size(remote.path) == 0:  # said in other words
            return b""
        raise


def open_seekable(location: str) -> BinaryIO:
    """Open a file for readers that jump about in it (zip, tar, Parquet).

    A remote one is read a mebibyte ahead. When it is written anew meanwhile, S3 refuses the next
    read instead of mixing the two.

    Raises:
        OSError: As for `read_bytes`, here and when it is read.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return local.open_file(local_path(location))
    remote = open_remote(location)
    return cast("BinaryIO", io.BufferedReader(_RemoteFile(remote), _READAHEAD))


class _RemoteFile(io.RawIOBase):
    """A remote file whose reads are patient and whose errors are of one kind."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self._remote = remote
        self._place = 0
        with wrap_as_os_error(remote.location):
            self._file = remote.patiently(self._open)
            self._size = int(self._file.size)

    def _open(self) -> Any:
        file = self._remote.filesystem.open(self._remote.name, "rb", cache_type="none")
        details = getattr(file, "details", None)
        if isinstance(details, dict) and details.get("type") == "directory":
            raise FileNotFoundError(f"{self._remote.location} is a folder")
        return file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to byte {base + offset}")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0

        def read() -> bytes:
            self._file.seek(self._place)
            return bytes(self._file.read(length))

        with wrap_as_os_error(self._remote.location):
            content = self._remote.patiently(read)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
