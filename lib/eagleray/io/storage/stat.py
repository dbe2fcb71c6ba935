"""What is at a location: something, a folder, how many bytes."""

from __future__ import annotations

import errno

from eagleray.io.storage import local
from eagleray.io.storage.faults import asking, wrap_as_os_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.remote import Remote, open_remote
from eagleray.io.storage.s3_pages import read_page

__all__ = ["exists", "is_folder", "size_of"]


def exists(location: str) -> bool:
    """Whether anything is there, a file or something under a prefix.

    Raises:
        InputError: A remote storage does not answer, or has no such bucket.
    """
    if not is_remote(location):
        return local.answers(local_path(location).exists)
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
        return local.answers(local_path(location).is_dir)
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
        return local.size_of(local_path(location))
    with wrap_as_os_error(location):
        remote = open_remote(location)
        found = remote.patiently(lambda: remote.filesystem.info(remote.name))
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
    bucket, prefix = remote.bucket_and_prefix()
    return len(read_page(remote, bucket, prefix, "", max_keys=1)) > 0 or not prefix


def _type_of(remote: Remote) -> str | None:
    try:
        return str(remote.patiently(lambda: remote.filesystem.info(remote.path))["type"])
    except FileNotFoundError:
        return None
