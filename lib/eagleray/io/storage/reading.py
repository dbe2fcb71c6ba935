"""Reads files and byte ranges, and opens files for random access."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from eagleray.io.storage import local
from eagleray.io.storage.errors import error_code, wrap_as_os_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.remote import Remote, open_remote

__all__ = ["open_seekable", "read_bytes", "read_range"]

_READAHEAD = 2**20
_NO_SUCH_RANGE = frozenset({"InvalidRange", "416"})


def read_bytes(location: str, *, limit: int | None = None) -> bytes:
    """Read a whole file, or its first `limit` bytes.

    Raises:
        OSError: If the file cannot be read; `FileNotFoundError` if there is none,
            `StorageUnavailableError` if the storage is at fault and not the file.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        return local.read(local_path(location), 0, limit)
    with wrap_as_os_error(location):
        remote = open_remote(location)
        if limit is None:
            # A single request never mixes two versions of a file, and needs no size.
            options = {"max_concurrency": 1} if remote.is_s3 else {}
            return _read(remote, lambda: remote.filesystem.cat_file(remote.name, **options))
        # S3 has no empty ranges.
        return _read_range(remote, 0, max(limit, 1))[:limit]


def read_range(location: str, start: int, length: int) -> bytes:
    """Read `length` bytes from byte `start` on; fewer if the file ends before.

    Raises:
        OSError: As for `read_bytes`.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        return local.read(local_path(location), start, length)
    with wrap_as_os_error(location):
        remote = open_remote(location)
        return _read_range(remote, start, length) if length else b""


def _read_range(remote: Remote, start: int, length: int) -> bytes:
    return _read(
        remote,
        lambda: remote.filesystem.cat_file(remote.name, start=start, end=start + length),
    )[:length]


def _read(remote: Remote, call: Callable[[], bytes]) -> bytes:
    try:
        return remote.call(call)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error_code(error) in _NO_SUCH_RANGE:  # the file ends before the range starts
            return b""
        if (
            not remote.is_s3 and remote.filesystem.size(remote.path) == 0
        ):  # other storages report it differently
            return b""
        raise


def open_seekable(location: str) -> BinaryIO:
    """Open a file for random access, as readers of zip, tar and Parquet need it.

    A remote file is read one mebibyte ahead. If it is overwritten in the meantime, S3 fails the
    next read instead of mixing the two versions.

    Raises:
        OSError: As for `read_bytes`, here and on each read.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        return local.open_file(local_path(location))
    remote = open_remote(location)
    return cast("BinaryIO", io.BufferedReader(_RemoteFile(remote), _READAHEAD))


class _RemoteFile(io.RawIOBase):
    """A remote file whose reads are retried and raise `OSError` only."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self._remote = remote
        self._position = 0
        with wrap_as_os_error(remote.location):
            self._file = remote.call(self._open)
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
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to byte {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0

        def read() -> bytes:
            self._file.seek(self._position)
            return bytes(self._file.read(length))

        with wrap_as_os_error(self._remote.location):
            content = self._remote.call(read)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
