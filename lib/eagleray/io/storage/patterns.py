"""Finds the files that match a glob pattern, as a stream of Arrow tables in the order of names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.core.file_names import escape_file_name
from eagleray.io.storage.errors import wrap_as_input_error
from eagleray.io.storage.listing import (
    FileInfo,
    is_folder_entry,
    local_info,
    remote_info,
    rows_of,
    tables_of_pages,
    tables_of_rows,
    walk_local,
)
from eagleray.io.storage.local import false_on_error
from eagleray.io.storage.locations import is_remote, local_path
from eagleray.io.storage.path_policy import PathPolicy
from eagleray.io.storage.remote import Remote, open_remote
from eagleray.io.storage.s3_keys import iterate_pages
from eagleray.io.storage.s3_pages import Page

__all__ = ["glob_files", "glob_tables"]

_WILDCARD = re.compile(r"[*?\[]")
_ANY = PathPolicy()


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
            yield from tables_of_rows(found)
            return
        remote = open_remote(pattern)
        if remote.is_s3:
            yield from _glob_s3(remote)
        else:
            with _valid_pattern(pattern):
                yield from tables_of_rows(_glob_remote(remote))


def glob_files(pattern: str) -> list[FileInfo]:
    """Return the files that match a pattern: the rows of `glob_tables`."""
    return [info for table in glob_tables(pattern) for info in rows_of(table)]


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


def _glob_local(pattern: str) -> Iterator[FileInfo]:
    import glob

    found = glob.glob(pattern, recursive=True, include_hidden=True)  # noqa: PTH207 - Path cannot glob an absolute pattern
    names = sorted(found)
    return (local_info(name) for name in names if not Path(name).is_dir())


def _glob_within(pattern: str, policy: PathPolicy) -> Iterator[FileInfo]:
    """Match like `_glob_local`, without entering folders that the policy does not allow."""
    from fsspec.utils import glob_translate

    root = _WILDCARD.split(pattern, maxsplit=1)[0].rpartition("/")[0] or "/"
    with _valid_pattern(pattern):
        matches = re.compile(glob_translate(escape_file_name(pattern))).match
        cannot_match = _folder_without_match(pattern)
    if not false_on_error(Path(root).is_dir):
        return
    for info in walk_local(Path(root), frozenset(), policy, cannot_match):
        # Whether a link to a forbidden location leads to a folder must not be revealed.
        may_contain_match = not cannot_match(f"{info.uri}/")
        if matches(info.uri) or (may_contain_match and not policy.allows(info.uri)):
            yield info


def _glob_remote(remote: Remote) -> Iterator[FileInfo]:
    scheme = remote.location.split("://", 1)[0]
    found = remote.call(lambda: remote.filesystem.glob(remote.path, detail=True))
    for name, info in sorted(found.items()):
        if not is_folder_entry(info):
            yield remote_info(name if "://" in name else f"{scheme}://{name}", info)


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
    yield from tables_of_pages(remote, bucket, matches)


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
