"""One file at a time: asked for, read, written whole or not at all, removed."""

from __future__ import annotations

import errno
import io
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from eagleray.errors import InputError
from eagleray.storage import local
from eagleray.storage.ahead import results_ahead
from eagleray.storage.faults import asking, error_code, one_kind_of_error
from eagleray.storage.locations import absolute, is_remote
from eagleray.storage.remote import Remote, open_remote
from eagleray.storage.s3_keys import iterate_pages
from eagleray.storage.s3_pages import read_page

__all__ = [
    "delete",
    "exists",
    "is_folder",
    "make_folder",
    "open_seekable",
    "put_atomic",
    "put_if_absent",
    "read_bytes",
    "read_range",
    "remove_tree",
    "size_of",
]

_READAHEAD = 2**20
# Of a large file on S3; what is as large as two of them is sent in parts.
_PART_BYTES = 16 * 2**20
_DELETIONS_AT_ONCE = 4
_NOT_FOR_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_ALREADY_THERE = frozenset({"PreconditionFailed", "412"})
_NO_SUCH_RANGE = frozenset({"InvalidRange", "416"})


# --- asking -----------------------------------------------------------------------------------


def exists(location: str) -> bool:
    """Whether anything is there, a file or something under a prefix.

    Raises:
        InputError: A remote storage does not answer, or has no such bucket.
    """
    if not is_remote(location):
        return local.answers(Path(absolute(location)).exists)
    with asking(location):
        remote = open_remote(location)
        if remote.is_s3:
            return _is_s3_file(remote) or _is_s3_folder(remote)
        return _type_of(remote) is not None


def is_folder(location: str) -> bool:
    """Whether the location is a folder, or a prefix with something under it.

    Raises:
        InputError: A remote storage does not answer, or has no such bucket.
    """
    if not is_remote(location):
        return local.answers(Path(absolute(location)).is_dir)
    with asking(location):
        remote = open_remote(location)
        return _is_s3_folder(remote) if remote.is_s3 else _type_of(remote) == "directory"


def size_of(location: str) -> int:
    """Bytes of a file.

    Raises:
        OSError: Whatever went wrong; `FileNotFoundError` when nothing is there.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return local.size_of(Path(absolute(location)))
    with one_kind_of_error(location):
        remote = open_remote(location)
        found = remote.patiently(lambda: remote.filesystem.info(_path(remote)))
        if found["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "it is a folder", location)
        return int(found["size"])


def _is_s3_file(remote: Remote) -> bool:
    bucket, key = remote.bucket_and_key()
    if not key:
        return False
    try:
        remote.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return False
    except PermissionError:  # what S3 says of a key that is not there, to those who may not list
        read_page(remote, bucket, key, "", max_keys=1)
        return False
    return True


def _is_s3_folder(remote: Remote) -> bool:
    """Ask for one key under the prefix, however many there are."""
    bucket, key = remote.bucket_and_key()
    prefix = key if not key or key.endswith("/") else f"{key}/"
    return len(read_page(remote, bucket, prefix, "", max_keys=1)) > 0 or not prefix


def _type_of(remote: Remote) -> str | None:
    try:
        return str(remote.patiently(lambda: remote.filesystem.info(remote.path))["type"])
    except FileNotFoundError:
        return None


def _path(remote: Remote) -> str:
    """What a file is called: s3fs takes the URI itself, and loses a last slash of the path."""
    return remote.location if remote.is_s3 else remote.path


# --- reading ----------------------------------------------------------------------------------


def read_bytes(location: str, *, limit: int | None = None) -> bytes:
    """Read a file whole, or its first `limit` bytes.

    Raises:
        OSError: Whatever went wrong; `FileNotFoundError` when nothing is there,
            `StorageUnavailableError` when the storage is at fault and not the file.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return local.read(Path(absolute(location)), 0, limit)
    with one_kind_of_error(location):
        remote = open_remote(location)
        if limit is None:
            # A single request: no question for the size, and never parts of two versions.
            options = {"max_concurrency": 1} if remote.is_s3 else {}
            return _read(remote, lambda: remote.filesystem.cat_file(_path(remote), **options))
        # S3 has no range of nothing.
        return _read_part(remote, 0, max(limit, 1))[:limit]


def read_range(location: str, start: int, length: int) -> bytes:
    """Read `length` bytes from byte `start` on; fewer where the file ends.

    Raises:
        OSError: As for `read_bytes`.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return local.read(Path(absolute(location)), start, length)
    with one_kind_of_error(location):
        remote = open_remote(location)
        return _read_part(remote, start, length) if length else b""


def _read_part(remote: Remote, start: int, length: int) -> bytes:
    return _read(
        remote,
        lambda: remote.filesystem.cat_file(_path(remote), start=start, end=start + length),
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
        return local.open_file(Path(absolute(location)))
    remote = open_remote(location)
    return cast("BinaryIO", io.BufferedReader(_RemoteFile(remote), _READAHEAD))


class _RemoteFile(io.RawIOBase):
    """A remote file whose reads are patient and whose errors are of one kind."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self._remote = remote
        self._place = 0
        with one_kind_of_error(remote.location):
            self._file = remote.patiently(self._open)
            self._size = int(self._file.size)

    def _open(self) -> Any:
        file = self._remote.filesystem.open(_path(self._remote), "rb", cache_type="none")
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

        with one_kind_of_error(self._remote.location):
            content = self._remote.patiently(read)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


# --- writing ----------------------------------------------------------------------------------


def put_atomic(location: str, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none of it, also after a crash.

    So it is on mounted file systems and in object stores; other remote systems (sftp, hdfs, …)
    write as fsspec does.

    Raises:
        OSError: It cannot be written. A remote file may be there all the same when an answer was
            lost to the end.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        local.put_atomic(Path(absolute(location)), content)
        return
    with one_kind_of_error(location):
        _pipe(open_remote(location, many_calls=_is_large(content)), content)


def put_if_absent(location: str, content: bytes) -> bool:
    """Write a file if there is none, as atomically as `put_atomic`.

    An answer of S3 can be lost, and the repeated request (by us, or unseen by the HTTP client
    below) then meets the file that the first one wrote. So on S3 a file with the very same content
    counts as ours: put something unique into contents that race. The server must honour
    `If-None-Match` (Amazon S3, MinIO, Ceph, R2 and moto do). Systems for which fsspec has no such
    condition ask first and write then, which two writers can both pass.

    Returns:
        Whether this call made the file; False when another one is there.

    Raises:
        OSError: It cannot be written; whether it is there is then not known.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        return local.put_if_absent(Path(absolute(location)), content)
    with one_kind_of_error(location):
        remote = open_remote(location, many_calls=_is_large(content))
        try:
            _pipe(remote, content, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and error_code(error) not in _ALREADY_THERE:
                raise
        else:
            return True
    return remote.is_s3 and read_bytes(location) == content


def _is_large(content: bytes) -> bool:
    return len(content) >= 2 * _PART_BYTES


def _pipe(remote: Remote, content: bytes, **options: Any) -> None:
    if remote.is_s3:
        options["chunksize"] = _PART_BYTES
    remote.patiently(lambda: remote.filesystem.pipe_file(_path(remote), content, **options))


def make_folder(location: str) -> None:
    """Make a local folder with its parents; object stores need none."""
    if not is_remote(location):
        Path(absolute(location)).mkdir(parents=True, exist_ok=True)


# --- removing ---------------------------------------------------------------------------------


def delete(location: str) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
        OSError: It cannot be removed.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        Path(absolute(location)).unlink(missing_ok=True)
        return
    with one_kind_of_error(location):
        remote = open_remote(location)
        try:
            remote.patiently(lambda: remote.filesystem.rm_file(_path(remote)))
        except FileNotFoundError:
            return


def remove_tree(location: str) -> None:
    """Remove a folder or prefix and all under it.

    Raises:
        OSError: Something cannot be removed.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        shutil.rmtree(absolute(location))
        return
    with one_kind_of_error(location):
        remote = open_remote(location)
        if remote.is_s3:
            _remove_keys(remote)
        else:
            remote.patiently(lambda: remote.filesystem.rm(remote.path, recursive=True))


def _remove_keys(remote: Remote) -> None:
    bucket, key = remote.bucket_and_key()
    if not key.strip("/"):
        raise InputError(f"{remote.location} is a whole bucket, which is never removed.")
    pages = iterate_pages(remote, bucket, key.rstrip("/") + "/")
    with ThreadPoolExecutor(_DELETIONS_AT_ONCE) as pool:
        for _ in results_ahead(
            pool, lambda page: _delete_keys(remote, bucket, page.keys.to_pylist()), pages
        ):
            pass


def _delete_keys(remote: Remote, bucket: str, keys: list[str]) -> None:
    """Delete up to a thousand keys at once; those that XML cannot hold, one by one."""
    strange = [key for key in keys if _NOT_FOR_XML.search(key)]
    for key in strange:
        remote.call_s3("delete_object", Bucket=bucket, Key=key)
    objects = [{"Key": key} for key in keys if not _NOT_FOR_XML.search(key)]

    def request() -> None:
        answer = remote.filesystem.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
        )
        if errors := answer.get("Errors"):
            raise _KeptError(errors[0])

    if objects:
        remote.patiently(request)


class _KeptError(OSError):
    """S3 answers 200 also when it has kept some of the keys; the first of these, with its code."""

    def __init__(self, kept: dict[str, Any]) -> None:
        super().__init__(f"{kept.get('Key')} is not removed: {kept.get('Message')}")
        self.response = {"Error": kept}
