"""Lists folders and matches patterns, as a stream of Arrow tables in the order of names."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
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
    "glob_files",
    "glob_tables",
    "list_files",
    "list_tables",
    "version_of",
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
_WILDCARD = re.compile(r"[*?\[]")
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
            yield from _tables_of_rows(_walk_local(local_path(folder), frozenset(), policy))
            return
        remote = open_remote(folder)
        if remote.is_s3:
            bucket, prefix = remote.bucket_and_prefix()
            if not bucket.endswith(_DIRECTORY_BUCKET_SUFFIX):
                yield from _tables_of_pages(remote, bucket, iterate_pages(remote, bucket, prefix))
                return
            # Directory buckets do not list keys in order.
            remote = open_remote(folder, many_calls=True)
        yield from _tables_of_rows(_walk_remote(remote))


def list_files(folder: str) -> Iterator[FileInfo]:
    """Yield every file under a folder or prefix: the rows of `list_tables`.

    Raises:
        InputError: If the folder or a subfolder cannot be listed.
    """
    if is_remote(folder):
        for table in list_tables(folder):
            yield from _rows_of(table)
        return
    with wrap_as_input_error(folder):
        yield from _walk_local(local_path(folder), frozenset(), _ANY)


def file_info(location: str) -> FileInfo:
    """Describe one file without a request: a remote one only by its URI."""
    if is_remote(location):
        return FileInfo(uri=location, size=None, version="")
    return _local_info(str(local_path(location)))


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
    return _remote_info(location, info).version


def glob_tables(pattern: str, policy: PathPolicy = _ANY) -> Iterator[pa.Table]:
    """Yield tables of the files that match a pattern (`*`, `**`, `?`, `[…]`), in name order.

    Hidden names match like others. On S3 the prefix before the first wildcard is listed as a
    stream, without folders that cannot contain a match; other storages return all names at once.

    Args:
        pattern: The pattern, which may be read.
        policy: A link to a folder that it does not allow is listed if that folder could contain a
            match, and is not entered.

    Yields:
        Non-empty tables of `LISTING_SCHEMA`.

    Raises:
        InputError: If the storage does not respond, or the pattern is invalid.
    """
    with wrap_as_input_error(pattern):
        if not is_remote(pattern):
            path = str(local_path(pattern))
            found = _glob_within(path, policy) if policy.is_limited else _glob_local(path)
            yield from _tables_of_rows(found)
            return
        remote = open_remote(pattern)
        if remote.is_s3:
            yield from _glob_s3(remote)
        else:
            with _valid_pattern(pattern):
                yield from _tables_of_rows(_glob_remote(remote))


@contextlib.contextmanager
def _valid_pattern(pattern: str) -> Iterator[None]:
    """Turn the `ValueError` of an invalid pattern into one sentence.

    Raises:
        InputError: If the pattern is invalid.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(f"{pattern} is not a valid pattern: {error}.") from error


def glob_files(pattern: str) -> list[FileInfo]:
    """Return the files that match a pattern: the rows of `glob_tables`."""
    return [info for table in glob_tables(pattern) for info in _rows_of(table)]


# --- rows and tables --------------------------------------------------------------------------


def _rows_of(table: pa.Table) -> Iterator[FileInfo]:
    for uri, size, version in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield FileInfo(uri, size, version)


def _tables_of_rows(rows: Iterable[FileInfo]) -> Iterator[pa.Table]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, _ROWS_PER_TABLE)):
        columns = [
            pa.array([info.uri for info in chunk], pa.string()),
            pa.array([info.size for info in chunk], pa.int64()),
            pa.array([info.version for info in chunk], pa.string()),
        ]
        yield pa.table(columns, schema=LISTING_SCHEMA)


def _tables_of_pages(remote: Remote, bucket: str, pages: Iterable[Page]) -> Iterator[pa.Table]:
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


def _walk_local(
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
            yield _local_info(path)
        elif policy.is_limited and _is_link(path) and not policy.allows(path):
            yield FileInfo(escape_file_name(path.rstrip("/")), None, "")
        elif not skip(path):
            yield from _walk_local(Path(path), ancestors | {identity}, policy, skip)


def _is_link(folder: str) -> bool:
    return os.path.islink(folder.rstrip("/"))  # noqa: PTH114 - a Path would take longer


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder in the order of full paths; folders end with a slash."""
    with os.scandir(folder) as entries:
        return sorted(entry.name + "/" * false_on_error(entry.is_dir) for entry in entries)


def _local_info(path: str) -> FileInfo:
    uri = escape_file_name(path)
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each file would take half of the time
    except (OSError, ValueError):
        return FileInfo(uri=uri, size=None, version="")
    return FileInfo(uri=uri, size=status.st_size, version=str(status.st_mtime_ns))


def _glob_local(pattern: str) -> Iterator[FileInfo]:
    import glob

    found = glob.glob(pattern, recursive=True, include_hidden=True)  # noqa: PTH207 - Path cannot glob an absolute pattern
    names = sorted(found)
    return (_local_info(name) for name in names if not Path(name).is_dir())


def _glob_within(pattern: str, policy: PathPolicy) -> Iterator[FileInfo]:
    """Match like `_glob_local`, without entering folders that the policy does not allow."""
    from fsspec.utils import glob_translate

    root = _WILDCARD.split(pattern, maxsplit=1)[0].rpartition("/")[0] or "/"
    with _valid_pattern(pattern):
        matches = re.compile(glob_translate(escape_file_name(pattern))).match
        cannot_match = _folder_without_match(pattern)
    if not false_on_error(Path(root).is_dir):
        return
    for info in _walk_local(Path(root), frozenset(), policy, cannot_match):
        # Whether a link to a forbidden location leads to a folder must not be revealed.
        may_contain_match = not cannot_match(f"{info.uri}/")
        if matches(info.uri) or (may_contain_match and not policy.allows(info.uri)):
            yield info


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
        return sorted(found, key=lambda entry: entry["name"] + "/" * _is_folder(entry))

    def walk(entries: list[dict[str, Any]]) -> Iterator[FileInfo]:
        folders = [entry["name"] for entry in entries if _is_folder(entry)]
        listed = read_ahead(list_folder, folders, threads=pool)
        for entry in entries:
            if _is_folder(entry):
                yield from walk(next(listed))
            else:
                below = entry["name"].removeprefix(remote.path).lstrip("/")
                uri = join(remote.location, below) if below else remote.location
                yield _remote_info(uri, entry)

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        yield from walk(list_folder(remote.path))


def _is_folder(entry: dict[str, Any]) -> bool:
    return bool(entry["type"] == "directory")


def _remote_info(uri: str, info: dict[str, Any]) -> FileInfo:
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    return FileInfo(uri=uri, size=info.get("size"), version=str(version))


def _glob_remote(remote: Remote) -> Iterator[FileInfo]:
    scheme = remote.location.split("://", 1)[0]
    found = remote.call(lambda: remote.filesystem.glob(remote.path, detail=True))
    for name, info in sorted(found.items()):
        if not _is_folder(info):
            yield _remote_info(name if "://" in name else f"{scheme}://{name}", info)


# --- patterns on S3 ---------------------------------------------------------------------------


def _glob_s3(remote: Remote) -> Iterator[pa.Table]:
    from fsspec.utils import glob_translate

    bucket, pattern = remote.bucket_and_key()
    if _WILDCARD.search(bucket):
        raise InputError(f"{remote.location} has a wildcard in its bucket's name; name one bucket.")
    with _valid_pattern(remote.location):
        # RE2, which Arrow uses, spells the end of the text `\\z`.
        expression = "^" + glob_translate(pattern).removesuffix("\\Z") + "\\z"
        skip = _folder_without_match(pattern)
    pages = iterate_pages(remote, bucket, _WILDCARD.split(pattern, maxsplit=1)[0], skip=skip)
    matches = (_matching(page, expression) for page in pages)
    yield from _tables_of_pages(remote, bucket, matches)


def _matching(page: Page, expression: str) -> Page:
    mask = pc.match_substring_regex(page.keys, expression)
    return Page(
        keys=page.keys.filter(mask),
        sizes=page.sizes.filter(mask),
        versions=page.versions.filter(mask),
        truncated=page.truncated,
    )


def _folder_without_match(pattern: str) -> Callable[[str], str | None]:
    """Return a function that gives the topmost folder of a key that cannot contain a match."""
    from fsspec.utils import glob_translate

    parts = pattern.split("/")
    levels = [re.compile(glob_translate(part)) for part in parts[:-1] if part != "**"]

    def folder(key: str) -> str | None:
        names = key.split("/")
        for depth, name in enumerate(names[:-1]):
            if depth >= len(levels) or not levels[depth].match(name):
                return "/".join(names[: depth + 1]) + "/"
        return None

    return folder if "**" not in parts else lambda _: None
