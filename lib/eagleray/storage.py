"""The one module that speaks to storage: local paths and every URI that fsspec opens.

Locations stay `str`: a `Path` would eat the second slash of `s3://`. A location without a scheme
is a local path, taken letter by letter: no percent-decoding, no `::` chaining, no glob unless a
function says so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagleray.errors import EaglerayError, InputError

__all__ = [
    "FileInfo",
    "absolute",
    "exists",
    "file_info",
    "glob_files",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "make_folder",
    "name_of",
    "put_atomic",
    "read_bytes",
    "remove_tree",
]


_FETCHED_FROM_ANYWHERE = frozenset({"http", "https", "ftp", "ftps"})
_LOCAL_SCHEMES = ("file://", "local://")
_VERSION_KEYS = ("VersionId", "ETag", "etag", "LastModified", "mtime")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One listed file.

    Attributes:
        uri: Absolute path or full URI.
        size: Bytes, or None where the listing does not tell (a dangling link).
        version: What changes when the content changes: an ETag or version id, or a time stamp.
    """

    uri: str
    size: int | None
    version: str


def is_remote(location: str) -> bool:
    """Whether the location has a scheme other than `file` and its other name, `local`."""
    return "://" in location and not location.startswith(_LOCAL_SCHEMES)


def absolute(location: str) -> str:
    """Return a local path made absolute, and a URI unchanged."""
    if is_remote(location):
        return location
    path = location.removeprefix("file://").removeprefix("local://")
    # `~` and `~/…` are the user's home; `~name` is a file name like any other.
    return str(Path(path).expanduser() if path.split("/", 1)[0] == "~" else Path(path).absolute())


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


def _open_remote(location: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URI and the path inside it."""
    import fsspec

    scheme = location.split("://", 1)[0]
    if scheme in _FETCHED_FROM_ANYWHERE:
        raise InputError(
            f"{location} is not fetched: whoever writes a table of {scheme} addresses could make "
            "this machine call any other. Copy the images to a folder or a bucket."
        )
    try:
        filesystem_class = fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise InputError(f"Cannot open {location}: {error}.") from error
    path = filesystem_class._strip_protocol(location)
    options = filesystem_class._get_kwargs_from_urls(location)
    return filesystem_class(**options), path


@contextlib.contextmanager
def _one_kind_of_error(location: str) -> Iterator[None]:
    """Make an `OSError` of whatever a storage library raises: our callers know that one."""
    try:
        yield
    except (OSError, EaglerayError):
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise OSError(f"{name_of(location)}: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def _asking(location: str) -> Iterator[None]:
    """Say in one sentence that a place named by the user does not answer."""
    try:
        with _one_kind_of_error(location):
            yield
    except OSError as error:
        raise InputError(
            f"Cannot look at {location} ({error.strerror or error}); check its name, the "
            "credentials and the endpoint."
        ) from error


def exists(location: str) -> bool:
    """Whether anything is there.

    Raises:
        InputError: A remote storage does not answer.
    """
    if not is_remote(location):
        return _answers(Path(absolute(location)).exists)
    with _asking(location):
        filesystem, path = _open_remote(location)
        return bool(filesystem.exists(path))


def _answers(question: Callable[[], bool]) -> bool:
    """Ask the file system; a name that it cannot even hold names nothing."""
    try:
        return question()
    except (OSError, ValueError):
        return False


def is_folder(location: str) -> bool:
    """Whether the location is a folder, or a prefix with something under it.

    Raises:
        InputError: A remote storage does not answer.
    """
    if not is_remote(location):
        return _answers(Path(absolute(location)).is_dir)
    with _asking(location):
        filesystem, path = _open_remote(location)
        return bool(filesystem.isdir(path))


def read_bytes(location: str, *, limit: int | None = None) -> bytes:
    """Read a file whole, or its first `limit` bytes.

    Raises:
        OSError: Whatever went wrong; `FileNotFoundError` when nothing is there.
        InputError: The scheme is not one that is read.
    """
    if not is_remote(location):
        return _read_local(Path(absolute(location)), limit)
    with _one_kind_of_error(location):
        return _read_remote(location, limit)


def _read_remote(location: str, limit: int | None) -> bytes:
    filesystem, path = _open_remote(location)
    content: bytes
    try:
        content = filesystem.cat_file(path, end=limit)
    except FileNotFoundError:
        raise
    except OSError:
        if filesystem.size(path) != 0:  # object stores refuse to give a range of nothing
            raise
        content = b""
    return content


def _read_local(path: Path, limit: int | None) -> bytes:
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL byte, which no file name can hold
        raise FileNotFoundError(str(error)) from error
    if stat.S_ISFIFO(mode):  # opening one would wait for a writer, for ever
        raise OSError("it is a named pipe, not a file")
    with path.open("rb") as file:
        return file.read() if limit is None else file.read(limit)


def put_atomic(location: str, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none of it, also after a crash."""
    if is_remote(location):
        with _one_kind_of_error(location):
            filesystem, path = _open_remote(location)
            filesystem.pipe_file(path, content)
        return
    target = Path(absolute(location))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(location: str) -> None:
    """Make a local folder with its parents; object stores need none."""
    if not is_remote(location):
        Path(absolute(location)).mkdir(parents=True, exist_ok=True)


def remove_tree(location: str) -> None:
    """Remove a folder or prefix and all under it."""
    if is_remote(location):
        filesystem, path = _open_remote(location)
        filesystem.rm(path, recursive=True)
        return
    import shutil

    shutil.rmtree(absolute(location))


def list_files(folder: str) -> Iterator[FileInfo]:
    """Yield every file under a folder or prefix, at any depth, in the order of their names.

    A file's URI begins with the folder as it was given, so the rest is its name inside.
    Links that lead nowhere are listed too, so that they can be accounted for as missing.

    Raises:
        InputError: The folder, or one below it, cannot be listed.
    """
    if is_remote(folder):
        with _asking(folder):
            filesystem, path = _open_remote(folder)
            found = filesystem.find(path, detail=True)
        for name in sorted(found):
            below = name.removeprefix(path).lstrip("/")
            yield _remote_info(join(folder, below) if below else folder, found[name])
        return
    with _asking(folder):
        yield from _walk_local(Path(absolute(folder)), frozenset())


def _walk_local(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    """List a folder whose parents are `above`: a link back to one of them is not followed."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        # Names of folders sort with their slash, so that the order is that of whole paths.
        ordered = sorted((entry.name + "/" * _is_folder(entry), entry.path) for entry in entries)
    for name, path in ordered:
        if name.endswith("/"):
            yield from _walk_local(Path(path), above | {identity})
        else:
            yield _local_info(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return _answers(entry.is_dir)  # a link to itself cannot be asked


def file_info(location: str) -> FileInfo:
    """Describe one file as far as that costs no request: remote ones only by their name."""
    if is_remote(location):
        return FileInfo(uri=location, size=None, version="")
    return _local_info(absolute(location))


def _local_info(path: str) -> FileInfo:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return FileInfo(uri=path, size=None, version="")
    return FileInfo(uri=path, size=status.st_size, version=str(status.st_mtime_ns))


def _remote_info(uri: str, info: dict[str, Any]) -> FileInfo:
    version = next((info[key] for key in _VERSION_KEYS if key in info), "")
    return FileInfo(uri=uri, size=info.get("size"), version=str(version))


def glob_files(pattern: str) -> list[FileInfo]:
    """Return the files that match a glob pattern (`*`, `**`, `?`, `[…]`), in name order."""
    if is_remote(pattern):
        filesystem, path = _open_remote(pattern)
        scheme = pattern.split("://", 1)[0]
        with _asking(pattern):
            found = filesystem.glob(path, detail=True)
        return [
            _remote_info(name if "://" in name else f"{scheme}://{name}", info)
            for name, info in sorted(found.items())
            if info["type"] != "directory"
        ]
    import glob

    names = sorted(glob.glob(absolute(pattern), recursive=True))  # noqa: PTH207 - Path cannot glob an absolute pattern
    return [_local_info(name) for name in names if not Path(name).is_dir()]
