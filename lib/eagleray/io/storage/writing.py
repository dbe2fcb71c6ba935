"""Writes files atomically, with or without replacing existing ones, and removes them."""

from __future__ import annotations

import errno
import re
import shutil
from typing import Any

from eagleray.core.errors import InputError
from eagleray.io.read_ahead import read_ahead
from eagleray.io.storage import local
from eagleray.io.storage.errors import error_code, wrap_as_os_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.reading import read_bytes
from eagleray.io.storage.remote import Remote, open_remote
from eagleray.io.storage.s3_keys import iterate_pages

__all__ = [
    "delete",
    "put_atomic",
    "put_if_absent",
    "remove_empty_folder",
    "remove_tree",
]

# Size of an S3 multipart upload's parts; files of at least two of them are sent so.
_PART_BYTES = 16 * 2**20
_DELETION_THREADS = 4
_INVALID_IN_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]")
_EXISTS_CODES = frozenset({"PreconditionFailed", "412"})


def put_atomic(location: str, content: bytes) -> None:
    """Write a file atomically: readers see all of it or none of it, also after a crash.

    This holds for mounted file systems and object stores.

    Raises:
        OSError: If it cannot be written. A remote file may exist nevertheless if all responses
            were lost.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        local.put_atomic(local_path(location), content)
        return
    with wrap_as_os_error(location):
        _pipe(open_remote(location, many_calls=_is_large(content)), content)


def put_if_absent(location: str, content: bytes) -> bool:
    """Write a file if there is none, as atomically as `put_atomic`.

    A response of S3 can be lost, and the retried request (by this package or by the HTTP client
    below) then finds the file that the first one wrote. So on S3 an existing file with identical
    content counts as written by this call: put something unique into contents that race. The server
    must honour `If-None-Match` (Amazon S3, MinIO, Ceph, R2 and moto do). For storages without such
    a condition in fsspec, existence is checked before the write, which two writers can both pass.

    Returns:
        Whether this call wrote the file; False if there was another one.

    Raises:
        OSError: If it cannot be written; whether it exists is then unknown.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        return local.put_if_absent(local_path(location), content)
    with wrap_as_os_error(location):
        remote = open_remote(location, many_calls=_is_large(content))
        try:
            _pipe(remote, content, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and error_code(error) not in _EXISTS_CODES:
                raise
        else:
            return True
    return remote.is_s3 and read_bytes(location) == content


def _is_large(content: bytes) -> bool:
    return len(content) >= 2 * _PART_BYTES


def _pipe(remote: Remote, content: bytes, **options: Any) -> None:
    if remote.is_s3:
        options["chunksize"] = _PART_BYTES
    remote.call(lambda: remote.filesystem.pipe_file(remote.name, content, **options))


def remove_empty_folder(location: str) -> None:
    """Remove an empty local folder; object stores have none.

    A folder that is missing or not empty is left alone.

    Raises:
        OSError: If it cannot be removed.
    """
    if is_remote(location):
        return
    try:
        local_path(location).rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def delete(location: str) -> None:
    """Remove a file, if it exists.

    Raises:
        OSError: If it cannot be removed.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        local_path(location).unlink(missing_ok=True)
        return
    with wrap_as_os_error(location):
        remote = open_remote(location)
        try:
            remote.call(lambda: remote.filesystem.rm_file(remote.name))
        except FileNotFoundError:
            return


def remove_tree(location: str) -> None:
    """Remove a folder or prefix with everything in it.

    Raises:
        OSError: If something cannot be removed.
        InputError: If the scheme is not supported, or the prefix is a whole bucket.
    """
    if not is_remote(location):
        shutil.rmtree(local_path(location))
        return
    with wrap_as_os_error(location):
        remote = open_remote(location)
        if remote.is_s3:
            _remove_keys(remote)
        else:
            remote.call(lambda: remote.filesystem.rm(remote.path, recursive=True))


def _remove_keys(remote: Remote) -> None:
    bucket, key = remote.bucket_and_key()
    if not key.strip("/"):
        raise InputError(f"{remote.location} is a whole bucket; buckets are never removed.")
    pages = iterate_pages(remote, bucket, key.rstrip("/") + "/")
    deletions = read_ahead(
        lambda page: _delete_keys(remote, bucket, page.keys.to_pylist()),
        pages,
        threads=_DELETION_THREADS,
    )
    for _ in deletions:
        pass


def _delete_keys(remote: Remote, bucket: str, keys: list[str]) -> None:
    """Delete up to a thousand keys with one request, and keys that XML cannot hold one by one."""
    from botocore.exceptions import ClientError

    objects = []
    for key in keys:
        if _INVALID_IN_XML.search(key):
            remote.call_s3("delete_object", Bucket=bucket, Key=key)
        else:
            objects.append({"Key": key})

    def request() -> None:
        response = remote.filesystem.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
        )
        if errors := response.get("Errors"):  # S3 responds 200 even if it kept some
            raise ClientError({"Error": errors[0]}, "DeleteObjects")

    if objects:
        remote.call(request)
