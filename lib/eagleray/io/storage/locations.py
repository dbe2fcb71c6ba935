r"""Locations as strings: local paths and URIs, made absolute, joined and named.

A local name need not be UTF-8, and text must be: in a location the bytes that are not are spelled
out, as in `caf\xe9.jpg`, and `local_path` finds the file again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from eagleray.core.errors import InputError
from eagleray.core.file_names import escape_file_name

__all__ = ["absolute", "is_remote", "join", "local_path", "name_of", "require_scheme"]

_LOCAL_SCHEMES = ("file://", "local://")
_AZURE_SCHEMES = frozenset({"az", "abfs"})
_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", *_AZURE_SCHEMES, "memory"})
_FETCHED_SCHEMES = frozenset({"http", "https"})
_SPELLED_OUT = re.compile(rb"\\x([89a-f][0-9a-f])")


def is_remote(location: str) -> bool:
    """Whether the location has a scheme other than `file` and its other name, `local`."""
    return "://" in location and not location.startswith(_LOCAL_SCHEMES)


def require_scheme(location: str) -> None:
    """Refuse a URI of a scheme that is not supported.

    fsspec opens dozens of them, many of which connect to whatever host the URI names, run what
    they find there, or wrap another file system. Supported are object stores, whose server and
    credentials are those of the environment, and `memory`, which is of this process.

    Args:
        location: With a scheme.

    Raises:
        InputError: The scheme is another one, or the URI holds a password.
    """
    scheme, _, rest = location.partition("://")
    if scheme.lower() in _FETCHED_SCHEMES:
        raise InputError(
            f"{location} is not fetched: whoever writes a table of {scheme} addresses could make "
            "this machine call any other. Copy the images to a folder or a bucket."
        )
    if scheme not in _SCHEMES:
        raise InputError(
            f"{location} is not opened: supported are local paths, s3://, gs://, az:// and "
            f"abfs://, and not {scheme}://; copy it to one of them, or mount it as a folder."
        )
    authority = rest.partition("/")[0]
    user, at, _ = authority.rpartition("@")
    if at and (":" in user or scheme not in _AZURE_SCHEMES):  # Azure has its container there
        raise InputError(
            f"A location of {scheme}:// has a user name or a password in front of its '@'; "
            "credentials belong into the environment."
        )


def absolute(location: str) -> str:
    """Return a local path made absolute, as text, and a URI unchanged."""
    if is_remote(location):
        return location
    path = location.removeprefix("file://").removeprefix("local://")
    # `~` and `~/…` are the user's home; `~name` is a file name like any other.
    home = path.split("/", 1)[0] == "~"
    return escape_file_name(str(Path(path).expanduser() if home else Path(path).absolute()))


def local_path(location: str) -> Path:
    r"""Return the path of a local location, absolute, as the operating system's functions take it.

    Of two files named `caf\xe9.jpg`, one with a backslash and one with the byte, it is the former.
    """
    path = Path(absolute(location))
    if "\\x" not in str(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[1:]:
        literal = found / part
        found = literal if os.path.lexists(literal) else found / _with_raw_bytes(part)
    return found


def _with_raw_bytes(name: str) -> str:
    raw = os.fsdecode(_SPELLED_OUT.sub(lambda found: bytes([int(found[1], 16)]), name.encode()))
    return raw if escape_file_name(raw) == name else name


def join(location: str, *parts: str) -> str:
    """Append names to a location; the slashes of a scheme stay."""
    scheme, separator, path = location.rpartition("://")
    base = path.rstrip("/")
    if base or path.startswith("/"):
        parts = (base, *parts)
    return scheme + separator + "/".join(parts)


def name_of(location: str) -> str:
    """The last name of a location."""
    return location.rstrip("/").rsplit("/", 1)[-1]
