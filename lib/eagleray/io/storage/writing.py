"""Files written whole or not at all, once or over another, and removed."""

from __future__ import annotations

import errno
import re
import shutil
from typing import Any

from eagleray.core.errors import InputError
from eagleray.io.read_ahead import read_ahead
from eagleray.io.storage import local
from eagleray.io.storage.faults import error_code, wrap_as_os_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.reading import read_bytes
from eagleray.io.storage.remote import Remote, open_remote
from eagleray.io.storage.s3_keys import iterate_pages

__all__ = [
    "delete",
    "make_folder",
    "put_atomic",
    "put_if_absent",
    "remove_empty_folder",
    "remove_tree",
]

# Of a large file on S3; what is as large as two of them is sent in parts.
_PART_BYTES = 16 * 2**20
_DELETIONS_AT_ONCE = 4
_NOT_FOR_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]")
_ALREADY_THERE = frozenset({"PreconditionFailed", "412"})


def put_atomic(location: str, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none of it, also after a crash.

    So it is on mounted file systems and in object stores.

    Raises:
        OSError: It cannot be written. A remote file may be there all the same when an answer was
            lost to the end.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        local.put_atomic(local_path(location), content)
        return
    with wrap_as_os_error(location):
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
        return local.put_if_absent(local_path(location), content)
    with wrap_as_os_error(location):
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
    remote.patiently(lambda: remote.filesystem.pipe_file(remote.name, content, **options))


def make_folder(location: str) -> None:
    """Make a local folder with its parents; object stores need none."""
    if not is_remote(location):
        local_path(location).mkdir(parents=True, exist_ok=True)


def remove_empty_folder(location: str) -> None:
    """Remove a local folder that holds nothing; object stores have none.

    Raises:
        OSError: It cannot be removed; one that holds something, or is not there, is fine.
    """
    if is_remote(location):
        return
    try:
        local_path(location).rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def delete(location: str) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
        OSError: It cannot be removed.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        local_path(location).unlink(missing_ok=True)
        return
    with wrap_as_os_error(location):
        remote = open_remote(location)
        try:
            remote.patiently(lambda: remote.filesystem.rm_file(remote.name))
        except FileNotFoundError:
            return


def remove_tree(location: str) -> None:
    """Remove a folder or prefix and all under it.

    Raises:
        OSError: Something cannot be removed.
        InputError: The scheme is not one that is written.
    """
    if not is_remote(location):
        shutil.rmtree(local_path(location))
        return
    with wrap_as_os_error(location):
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
    deletions = read_ahead(
        lambda page: _delete_keys(remote, bucket, page.keys.to_pylist()),
        pages,
        threads=_DELETIONS_AT_ONCE,
    )
    for _ in deletions:
        pass


def _delete_keys(remote: Remote, bucket: str, keys: list[str]) -> None:
    """Delete up to a thousand keys at once; those that XML cannot hold, one by one."""
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    strange = [key for key in keys if _NOT_FOR_XML.search(key)]
    for key in strange:
        remote.call_s3("delete_object", Bucket=bucket, Key=key)
    objects = [{"Key": key} for key in keys if not _NOT_FOR_XML.search(key)]

    def request() -> None:
        answer = remote.filesystem.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
        )
        if errors := answer.get("Errors"):  # S3 answers 200 also when it has kept some
            raise ClientError({"Error": errors[0]}, "DeleteObjects")

    if objects:
        remote.patiently(request)
