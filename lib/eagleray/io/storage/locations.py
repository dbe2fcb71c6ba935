r"""Handles locations as strings: makes paths and URIs absolute, joins and checks them.

A local file name need not be valid UTF-8, but a location must be: bytes that are not are escaped,
as in `caf\xe9.jpg`, and `local_path` finds the file again.
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
_HTTP_SCHEMES = frozenset({"http", "https"})
_ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


def is_remote(location: str) -> bool:
    """Whether the location has a scheme other than `file` and its alias `local`."""
    return "://" in location and not location.startswith(_LOCAL_SCHEMES)


def require_scheme(location: str) -> None:
    """Check that the scheme of a URI is supported.

    fsspec supports dozens of schemes, many of which connect to any host that the URI names, execute
    what they find there, or wrap another file system. Supported here are object stores, whose
    server and credentials come from the environment, and `memory`, which is local to this process.

    Args:
        location: A location with a scheme.

    Raises:
        InputError: If the scheme is not supported, or the URI contains a password.
    """
    scheme, _, rest = location.partition("://")
    if scheme.lower() in _HTTP_SCHEMES:
        raise InputError(
            f"{location} is not fetched: a table of {scheme} addresses could make this machine "
            "connect to any other. Copy the images to a folder or a bucket."
        )
    if scheme not in _SCHEMES:
        raise InputError(
            f"{location} is not opened: supported are local paths, s3://, gs://, az:// and "
            f"abfs://, and not {scheme}://; copy it to one of them, or mount it as a folder."
        )
    authority = rest.partition("/")[0]
    user, at, _ = authority.rpartition("@")
    if at and (":" in user or scheme not in _AZURE_SCHEMES):  # Azure puts the container there
        raise InputError(
            f"A location of {scheme}:// has a user name or a password in front of its '@'; "
            "credentials belong in the environment."
        )


def absolute(location: str) -> str:
    """Return the absolute form of a local path, and a URI unchanged."""
    if is_remote(location):
        return location
    path = location.removeprefix("file://").removeprefix("local://")
    # `~` and `~/…` are the user's home; `~name` is an ordinary file name.
    home = path.split("/", 1)[0] == "~"
    return escape_file_name(str(Path(path).expanduser() if home else Path(path).absolute()))


def local_path(location: str) -> Path:
    r"""Return the absolute path of a local location, with escaped bytes restored.

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
    raw = os.fsdecode(_ESCAPED_BYTE.sub(lambda found: bytes([int(found[1], 16)]), name.encode()))
    return raw if escape_file_name(raw) == name else name


def join(location: str, *parts: str) -> str:
    """Append names to a location; the slashes of a scheme are kept."""
    scheme, separator, path = location.rpartition("://")
    base = path.rstrip("/")
    if base or path.startswith("/"):
        parts = (base, *parts)
    return scheme + separator + "/".join(parts)


def name_of(location: str) -> str:
    """Return the last component of a location."""
    return location.rstrip("/").rsplit("/", 1)[-1]
