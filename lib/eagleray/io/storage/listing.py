"""Lists folders as a stream of Arrow tables, in the order of names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.core.file_names import escape_file_name
from eagleray.io.read_ahead import read_ahead
from eagleray.io.storage.errors import wrap_as_input_error
from eagleray.io.storage.local import false_on_error
from eagleray.io.storage.locations import is_remote, join, local_path
from eagleray.io.storage.path_policy import PathPolicy
from eagleray.io.storage.remote import Remote, open_remote
from eagleray.io.storage.retry import retry_local
from eagleray.io.storage.s3_keys import iterate_pages
from eagleray.io.storage.s3_pages import Page

__all__ = [
    "LISTING_SCHEMA",
    "FileInfo",
    "file_info",
    "is_folder_entry",
    "list_files",
    "list_tables",
    "local_info",
    "remote_info",
    "rows_of",
    "tables_of_pages",
    "tables_of_rows",
    "version_of",
    "walk_local",
]

LISTING_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
    ]
)

_ROWS_PER_TABLE = 8192
_LISTING_THREADS = 8
_VERSION_KEYS = ("VersionId", "ETag", "etag", "LastModified", "mtime")
_DIRECTORY_BUCKET_SUFFIX = "--x-s3"
_ANY = PathPolicy()


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One listed file.

    Attributes:
        uri: Absolute path or full URI.
        size: Size in bytes; None if it is unknown, as for a dangling link.
        version: Version id, ETag or modification time: it changes when the content changes.
    """

    uri: str
    size: int | None
    version: str


def list_tables(folder: str, policy: PathPolicy = _ANY) -> Iterator[pa.Table]:
    """Yield tables of every file under a folder or prefix, at any depth, in the order of names.

    Names are compared by their UTF-8 bytes, so the order is the same on every storage. A file's URI
    starts with the folder as it was given. S3 keys are unchanged; empty ones that end with a slash
    stand for folders and are skipped. Dangling links are listed, so that they are accounted for as
    missing. Bytes of local names that are not UTF-8 are escaped. Memory is bounded, however many
    files there are in S3 or in local folders.

    Args:
        folder: The folder, which may be read.
        policy: A link to a folder that it does not allow is listed as a file and not entered.

    Yields:
        Non-empty tables of `LISTING_SCHEMA` with some thousand rows.

    Raises:
        InputError: If the folder or a subfolder cannot be listed.
    """
    with wrap_as_input_error(folder):
        if not is_remote(folder):
            yield from tables_of_rows(walk_local(local_path(folder), frozenset(), policy))
            return
        remote = open_remote(folder)
        if remote.is_s3:
            bucket, prefix = remote.bucket_and_prefix()
            if not bucket.endswith(_DIRECTORY_BUCKET_SUFFIX):
                yield from tables_of_pages(remote, bucket, iterate_pages(remote, bucket, prefix))
                return
            # Directory buckets do not list keys in order.
            remote = open_remote(folder, many_calls=True)
        yield from tables_of_rows(_walk_remote(remote))


def list_files(folder: str) -> Iterator[FileInfo]:
    """Yield every file under a folder or prefix: the rows of `list_tables`.

    Raises:
        InputError: If the folder or a subfolder cannot be listed.
    """
    if is_remote(folder):
        for table in list_tables(folder):
            yield from rows_of(table)
        return
    with wrap_as_input_error(folder):
        yield from walk_local(local_path(folder), frozenset(), _ANY)


def file_info(location: str) -> FileInfo:
    """Describe one file without a request: a remote one only by its URI."""
    if is_remote(location):
        return FileInfo(uri=location, size=None, version="")
    return local_info(str(local_path(location)))


def version_of(location: str) -> str:
    """Return a file's version; "" if it does not exist or may not be read.

    For a remote file this takes a request.

    Raises:
        InputError: If the storage does not respond.
    """
    if not is_remote(location):
        return file_info(location).version
    try:
        remote = open_remote(location)
    except InputError:  # an unsupported scheme, which is reported when the file is fetched
        return ""
    with wrap_as_input_error(location):
        try:
            info = remote.call(lambda: remote.filesystem.info(remote.name))
        except (FileNotFoundError, PermissionError):
            return ""
    return remote_info(location, info).version


# --- rows and tables --------------------------------------------------------------------------


def rows_of(table: pa.Table) -> Iterator[FileInfo]:
    """Yield the rows of a table of `LISTING_SCHEMA`."""
    for uri, size, version in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield FileInfo(uri, size, version)


def tables_of_rows(rows: Iterable[FileInfo]) -> Iterator[pa.Table]:
    """Collect rows into tables of `LISTING_SCHEMA`."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, _ROWS_PER_TABLE)):
        columns = [
            pa.array([info.uri for info in chunk], pa.string()),
            pa.array([info.size for info in chunk], pa.int64()),
            pa.array([info.version for info in chunk], pa.string()),
        ]
        yield pa.table(columns, schema=LISTING_SCHEMA)


def tables_of_pages(remote: Remote, bucket: str, pages: Iterable[Page]) -> Iterator[pa.Table]:
    """Join pages of keys into tables, with Arrow's kernels only."""
    scheme = remote.location.split("://", 1)[0]
    start = f"{scheme}://{bucket}/"
    pending: list[pa.Table] = []
    for page in pages:
        uris = pc.binary_join_element_wise(start, page.keys, "")
        table = pa.table([uris, page.sizes, page.versions], schema=LISTING_SCHEMA)
        folders = pc.and_(pc.ends_with(page.keys, "/"), pc.equal(page.sizes, 0))
        if pc.any(folders).as_py():
            table = table.filter(pc.invert(folders))
        pending.append(table)
        if sum(map(len, pending)) >= _ROWS_PER_TABLE:
            yield pa.concat_tables(pending)
            pending = []
    if sum(map(len, pending)):
        yield pa.concat_tables(pending)


# --- local ------------------------------------------------------------------------------------


def walk_local(
    folder: Path,
    ancestors: frozenset[tuple[int, int]],
    policy: PathPolicy,
    skip: Callable[[str], object] = lambda _: None,
) -> Iterator[FileInfo]:
    """List a folder recursively, without following links back to one of its ancestors.

    Args:
        folder: The folder.
        ancestors: Device and inode number of each ancestor.
        policy: A link to a folder that it does not allow is listed as a file.
        skip: Returns something true for the path of a folder that is skipped.
    """
    status = retry_local(folder.stat)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    for name in retry_local(lambda: _names_in(folder)):
        path = os.path.join(folder, name)  # noqa: PTH118 - a Path for each file would take half of the time
        if not name.endswith("/"):
            yield local_info(path)
        elif policy.is_limited and _is_link(path) and not policy.allows(path):
            yield FileInfo(escape_file_name(path.rstrip("/")), None, "")
        elif not skip(path):
            yield from walk_local(Path(path), ancestors | {identity}, policy, skip)


def _is_link(folder: str) -> bool:
    return os.path.islink(folder.rstrip("/"))  # noqa: PTH114 - a Path would take longer


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder in the order of full paths; folders end with a slash."""
    with os.scandir(folder) as entries:
        return sorted(entry.name + "/" * false_on_error(entry.is_dir) for entry in entries)


def local_info(path: str) -> FileInfo:
    """Describe a local file; a dangling link has no size."""
    uri = escape_file_name(path)
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each file would take half of the time
    except (OSError, ValueError):
        return FileInfo(uri=uri, size=None, version="")
    return FileInfo(uri=uri, size=status.st_size, version=str(status.st_mtime_ns))


# --- any file system of fsspec ----------------------------------------------------------------


def _walk_remote(remote: Remote) -> Iterator[FileInfo]:
    """List folder by folder, some of them in advance."""

    def list_folder(path: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = remote.call(
                lambda: remote.filesystem.ls(path, detail=True)
            )
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda entry: entry["name"] + "/" * is_folder_entry(entry))

    def walk(entries: list[dict[str, Any]]) -> Iterator[FileInfo]:
        folders = [entry["name"] for entry in entries if is_folder_entry(entry)]
        listed = read_ahead(list_folder, folders, threads=pool)
        for entry in entries:
            if is_folder_entry(entry):
                yield from walk(next(listed))
            else:
                below = entry["name"].removeprefix(remote.path).lstrip("/")
                uri = join(remote.location, below) if below else remote.location
                yield remote_info(uri, entry)

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        yield from walk(list_folder(remote.path))


def is_folder_entry(entry: dict[str, Any]) -> bool:
    """Whether an entry of fsspec is a folder."""
    return bool(entry["type"] == "directory")


def remote_info(uri: str, info: dict[str, Any]) -> FileInfo:
    """Describe a remote file by its entry of fsspec."""
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    return FileInfo(uri=uri, size=info.get("size"), version=str(version))
