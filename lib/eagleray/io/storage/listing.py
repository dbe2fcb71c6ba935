"""What is in a folder or matches a pattern, as tables that stream in the order of names."""

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
from eagleray.io.storage.faults import asking, retry_local
from eagleray.io.storage.local import answers
from eagleray.io.storage.locations import is_remote, join, local_path
from eagleray.io.storage.path_policy import PathPolicy
from eagleray.io.storage.remote import Remote, open_remote
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
_FOLDERS_AHEAD = 8
_VERSION_KEYS = ("VersionId", "ETag", "etag", "LastModified", "mtime")
_DIRECTORY_BUCKET = "--x-s3"
_MAGIC = re.compile(r"[*?\[]")
_ANY = PathPolicy()


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


def list_tables(folder: str, policy: PathPolicy = _ANY) -> Iterator[pa.Table]:
    """Yield tables of every file under a folder or prefix, at any depth, in the order of names.

    Names are compared by their UTF-8 bytes, so that the order is the same wherever the files are.
    A file's URI begins with the folder as it was given, so the rest is its name inside. S3 keys
    come letter by letter; empty ones that end with a slash are folders and are left out. Links
    that lead nowhere are listed, so that they can be accounted for as missing. Of a local name that
    is not UTF-8 the bytes are spelled out. What is held is bounded: S3 and local folders may hold
    millions of files.

    Args:
        folder: That is listed, which may be read.
        policy: A link to a folder that it does not allow is listed as a file, and not entered.

    Yields:
        Tables of `LISTING_SCHEMA`, of some thousand rows, none of them empty.

    Raises:
        InputError: The folder, or one below it, cannot be listed.
    """
    with asking(folder):
        if not is_remote(folder):
            yield from _tables_of_rows(_walk_local(local_path(folder), frozenset(), policy))
            return
        remote = open_remote(folder)
        if remote.is_s3:
            bucket, prefix = remote.bucket_and_prefix()
            if not bucket.endswith(_DIRECTORY_BUCKET):
                yield from _tables_of_pages(remote, bucket, iterate_pages(remote, bucket, prefix))
                return
            # Directory buckets know no order of names.
            remote = open_remote(folder, many_calls=True)
        yield from _tables_of_rows(_walk_remote(remote))


def list_files(folder: str) -> Iterator[FileInfo]:
    """Yield every file under a folder or prefix: the rows of `list_tables`.

    Raises:
        InputError: The folder, or one below it, cannot be listed.
    """
    if is_remote(folder):
        for table in list_tables(folder):
            yield from _rows_of(table)
        return
    with asking(folder):
        yield from _walk_local(local_path(folder), frozenset(), _ANY)


def file_info(location: str) -> FileInfo:
    """Describe one file as far as that costs no request: remote ones only by their name."""
    if is_remote(location):
        return FileInfo(uri=location, size=None, version="")
    return _local_info(str(local_path(location)))


def version_of(location: str) -> str:
    """Return a file's version; "" where nothing is there, or nothing that we may see or open.

    A remote one costs a request.

    Raises:
        InputError: The storage does not answer.
    """
    if not is_remote(location):
        return file_info(location).version
    try:
        remote = open_remote(location)
    except InputError:  # a scheme that is not read; whoever fetches the file says why
        return ""
    with asking(location):
        try:
            info = remote.patiently(lambda: remote.filesystem.info(remote.name))
        except (FileNotFoundError, PermissionError):
            return ""
    return _remote_info(location, info).version


def glob_tables(pattern: str, policy: PathPolicy = _ANY) -> Iterator[pa.Table]:
    """Yield tables of the files that match a pattern (`*`, `**`, `?`, `[…]`), in name order.

    Hidden names match like others.

    On S3 the prefix before the first of these signs is listed, less the folders that no match can
    be in, and streams; other storages are asked for all names at once.

    Args:
        pattern: As text, which may be read.
        policy: A link to a folder that it does not allow matches where something below it might,
            and is not entered.

    Yields:
        Tables of `LISTING_SCHEMA`, none of them empty.

    Raises:
        InputError: The storage does not answer, or the pattern is not one.
    """
    with asking(pattern):
        if not is_remote(pattern):
            path = str(local_path(pattern))
            found = _glob_within(path, policy) if policy.is_limited else _glob_local(path)
            yield from _tables_of_rows(found)
            return
        remote = open_remote(pattern)
        if remote.is_s3:
            yield from _glob_s3(remote)
        else:
            with _as_pattern(pattern):
                yield from _tables_of_rows(_glob_remote(remote))


@contextlib.contextmanager
def _as_pattern(pattern: str) -> Iterator[None]:
    """Say in one sentence that a text is no pattern.

    Raises:
        InputError: It is none.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(f"{pattern} is not a pattern: {error}.") from error


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
    """Join pages of keys into tables; no row is touched in Python."""
    scheme = remote.location.split("://", 1)[0]
    start = f"{scheme}://{bucket}/"
    waiting: list[pa.Table] = []
    for page in pages:
        uris = pc.binary_join_element_wise(start, page.keys, "")
        table = pa.table([uris, page.sizes, page.versions], schema=LISTING_SCHEMA)
        folders = pc.and_(pc.ends_with(page.keys, "/"), pc.equal(page.sizes, 0))
        if pc.any(folders).as_py():
            table = table.filter(pc.invert(folders))
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROWS_PER_TABLE:
            yield pa.concat_tables(waiting)
            waiting = []
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


# --- local ------------------------------------------------------------------------------------


def _walk_local(
    folder: Path,
    above: frozenset[tuple[int, int]],
    policy: PathPolicy,
    skip: Callable[[str], object] = lambda _: None,
) -> Iterator[FileInfo]:
    """List a folder whose parents are `above`: a link back to one of them is not followed.

    Args:
        folder: That is listed.
        above: Device and number of each.
        policy: A link to a folder that it does not allow is listed as a file.
        skip: Tells of the path of a folder whether to leave it out.
    """
    status = retry_local(folder.stat)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for name in retry_local(lambda: _names_in(folder)):
        path = os.path.join(folder, name)  # noqa: PTH118 - a Path for each file takes half the time
        if not name.endswith("/"):
            yield _local_info(path)
        elif policy.is_limited and _is_link(path) and not policy.allows(path):
            yield FileInfo(escape_file_name(path.rstrip("/")), None, "")
        elif not skip(path):
            yield from _walk_local(Path(path), above | {identity}, policy, skip)


def _is_link(folder: str) -> bool:
    return os.path.islink(folder.rstrip("/"))  # noqa: PTH114 - a Path would take longer


def _names_in(folder: Path) -> list[str]:
    """Names sorted as whole paths are: those of folders with their slash."""
    with os.scandir(folder) as entries:
        return sorted(entry.name + "/" * answers(entry.is_dir) for entry in entries)


def _local_info(path: str) -> FileInfo:
    uri = escape_file_name(path)
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each file takes half the time
    except (OSError, ValueError):
        return FileInfo(uri=uri, size=None, version="")
    return FileInfo(uri=uri, size=status.st_size, version=str(status.st_mtime_ns))


def _glob_local(pattern: str) -> Iterator[FileInfo]:
    import glob

    found = glob.glob(pattern, recursive=True, include_hidden=True)  # noqa: PTH207 - Path cannot glob an absolute pattern
    names = sorted(found)
    return (_local_info(name) for name in names if not Path(name).is_dir())


def _glob_within(pattern: str, policy: PathPolicy) -> Iterator[FileInfo]:
    """Match as `_glob_local` does, without entering folders that a policy does not allow."""
    from fsspec.utils import glob_translate

    root = _MAGIC.split(pattern, maxsplit=1)[0].rpartition("/")[0] or "/"
    with _as_pattern(pattern):
        matches = re.compile(glob_translate(escape_file_name(pattern))).match
        cannot_match = _folder_without_match(pattern)
    if not answers(Path(root).is_dir):
        return
    for info in _walk_local(Path(root), frozenset(), policy, cannot_match):
        # Whatever a link to elsewhere leads to: who asks is not to learn whether that is a folder.
        may_hold_one = not cannot_match(f"{info.uri}/")
        if matches(info.uri) or (may_hold_one and not policy.allows(info.uri)):
            yield info


# --- any file system of fsspec ----------------------------------------------------------------


def _walk_remote(remote: Remote) -> Iterator[FileInfo]:
    """List folder by folder, some of them ahead."""

    def ask(path: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = remote.patiently(
                lambda: remote.filesystem.ls(path, detail=True)
            )
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda entry: entry["name"] + "/" * _is_folder(entry))

    def walk(entries: list[dict[str, Any]]) -> Iterator[FileInfo]:
        folders = [entry["name"] for entry in entries if _is_folder(entry)]
        listed = read_ahead(ask, folders, threads=pool)
        for entry in entries:
            if _is_folder(entry):
                yield from walk(next(listed))
            else:
                below = entry["name"].removeprefix(remote.path).lstrip("/")
                uri = join(remote.location, below) if below else remote.location
                yield _remote_info(uri, entry)

    with ThreadPoolExecutor(_FOLDERS_AHEAD) as pool:
        yield from walk(ask(remote.path))


def _is_folder(entry: dict[str, Any]) -> bool:
    return bool(entry["type"] == "directory")


def _remote_info(uri: str, info: dict[str, Any]) -> FileInfo:
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    return FileInfo(uri=uri, size=info.get("size"), version=str(version))


def _glob_remote(remote: Remote) -> Iterator[FileInfo]:
    scheme = remote.location.split("://", 1)[0]
    found = remote.patiently(lambda: remote.filesystem.glob(remote.path, detail=True))
    for name, info in sorted(found.items()):
        if not _is_folder(info):
            yield _remote_info(name if "://" in name else f"{scheme}://{name}", info)


# --- patterns on S3 ---------------------------------------------------------------------------


def _glob_s3(remote: Remote) -> Iterator[pa.Table]:
    from fsspec.utils import glob_translate

    bucket, pattern = remote.bucket_and_key()
    if _MAGIC.search(bucket):
        raise InputError(f"{remote.location} has a pattern in its bucket's name; name one bucket.")
    with _as_pattern(remote.location):
        # RE2, which matches here, writes the end of the text in small letters.
        expression = "^" + glob_translate(pattern).removesuffix("\\Z") + "\\z"
        skip = _folder_without_match(pattern)
    pages = iterate_pages(remote, bucket, _MAGIC.split(pattern, maxsplit=1)[0], skip=skip)
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
    """Find, for a key, the folder above it that no match can be in."""
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
