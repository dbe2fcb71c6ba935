"""Looks up what is at a location: whether it exists, whether it is a folder, and its size."""

from __future__ import annotations

import errno

from eagleray.io.storage import local
from eagleray.io.storage.errors import wrap_as_input_error, wrap_as_os_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.remote import Remote, open_remote
from eagleray.io.storage.s3_pages import read_page

__all__ = ["exists", "is_folder", "size_of"]


def exists(location: str) -> bool:
    """Whether there is a file or a folder at a location, or a key under a prefix.

    Raises:
        InputError: If a remote storage does not respond, or has no such bucket.
    """
    if not is_remote(location):
        return local.false_on_error(local_path(location).exists)
    with wrap_as_input_error(location):
        remote = open_remote(location)
        if remote.is_s3:
            return _is_s3_file(remote) or _is_s3_folder(remote)
        return _type_of(remote) is not None


def is_folder(location: str) -> bool:
    """Whether a location is a folder, or a prefix that has keys.

    Raises:
        InputError: If a remote storage does not respond, or has no such bucket.
    """
    if not is_remote(location):
        return local.false_on_error(local_path(location).is_dir)
    with wrap_as_input_error(location):
        remote = open_remote(location)
        return _is_s3_folder(remote) if remote.is_s3 else _type_of(remote) == "directory"


def size_of(location: str) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: If it cannot be looked up; `FileNotFoundError` if there is no such file.
        InputError: If the scheme is not supported.
    """
    if not is_remote(location):
        return local.size_of(local_path(location))
    with wrap_as_os_error(location):
        remote = open_remote(location)
        found = remote.call(lambda: remote.filesystem.info(remote.name))
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
    except PermissionError:  # S3's response for a missing key to callers without list permission
        read_page(remote, bucket, key, "", max_keys=1)
        return False
    return True


def _is_s3_folder(remote: Remote) -> bool:
    """Whether the prefix has a key; a single one is requested, however many there are."""
    bucket, prefix = remote.bucket_and_prefix()
    return len(read_page(remote, bucket, prefix, "", max_keys=1)) > 0 or not prefix


def _type_of(remote: Remote) -> str | None:
    try:
        return str(remote.call(lambda: remote.filesystem.info(remote.path))["type"])
    except FileNotFoundError:
        return None
