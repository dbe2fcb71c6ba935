"""From locations to inputs: what kind each one is, and all of them as one stream."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.fetch import ImageSource
from eagleray.io.fetch.locate import Locator
from eagleray.io.fetch.source import packing_of
from eagleray.io.storage import FileInfo
from eagleray.io.tables import TABLE_EXTENSIONS
from eagleray.sources.archives import ARCHIVES, archive_packing, archive_tables
from eagleray.sources.folders import open_folder, open_pattern
from eagleray.sources.listing import InputSpec, Listing, Source, listing_of_sources
from eagleray.sources.path_policy import require_readable, restrict_listing
from eagleray.sources.schema_merge import conform, unite
from eagleray.sources.skipped import SkippedFiles
from eagleray.sources.tables import list_locations, open_tabled
from eagleray.sources.unsupported import (
    is_unread_name,
    refuse_unread_content,
    refuse_unread_name,
)

__all__ = ["open_inputs"]

_GLOB_CHARACTERS = frozenset("*?[")
_FETCHED = ("http://", "https://")
_NO_COLUMNS = pa.schema([])


def open_inputs(spec: InputSpec) -> Listing:
    """Open all that the user named.

    Returns:
        The columns that come along, known now, and the rows, listed while they are read: places
        in the order given, folders in the order of names, archives and tables in their own.

    Raises:
        InputError: A place is not one that may be read, is not there, holds nothing, or is plainly
            a table, a list or an archive that is not read. What shows only by listing is raised
            while the rows are read.
        UnknownNameError: A table lacks the column.
    """
    require_readable(spec.locations, spec.policy)
    skipped = SkippedFiles()
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(lambda place: _open(place, spec, skipped), spec.locations))
    user_schema = unite((source.where, source.user_schema) for source in sources)
    notes = (note for source in sources for note in source.notes)
    listing = Listing(
        user_schema, _tables(sources, user_schema, skipped), _sentences(notes), skipped
    )
    return restrict_listing(listing, spec.policy)


def _sentences(notes: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Make a sentence of each note, and one of those that are the same of several tables."""
    tables: dict[str, list[str]] = {}
    for where, words in notes:
        tables.setdefault(words, []).append(where)
    return tuple(
        f"{places[0]}{f' and {len(places) - 1:,} more' * (len(places) > 1)}: {words}."
        for words, places in tables.items()
    )


def _tables(
    sources: list[Source], user_schema: pa.Schema, skipped: SkippedFiles
) -> Iterator[pa.Table]:
    for source in sources:
        num_rows = 0
        for table in source.tables:
            num_rows += table.num_rows
            yield conform(table, user_schema, source.where)
        if num_rows == 0:
            raise InputError(" ".join(filter(None, (source.nothing, skipped.describe()))))


def _open(location: str, spec: InputSpec, skipped: SkippedFiles) -> Source:
    if location.lower().startswith(_FETCHED):
        return _open_address(location)
    if packing_of(location) is not None:
        return _single(list_locations([location], locator=Locator(spec.policy)))
    if storage.is_folder(location):
        return open_folder(location, spec, skipped)
    if _GLOB_CHARACTERS & set(location) and not storage.exists(location):
        return open_pattern(location, spec, skipped)
    if location.lower().endswith(TABLE_EXTENSIONS):
        return open_tabled(location, spec, _describe(location).version)
    return _open_file(location, skipped)


def _open_file(location: str, skipped: SkippedFiles) -> Source:
    if not storage.exists(location):
        raise InputError(f"There is no folder or file {location}; check the path.")
    refuse_unread_name(location)
    packing = archive_packing(location)
    info = _describe(location)
    if packing is None:
        refuse_unread_content(location)
        return _single(listing_of_sources([ImageSource(info.uri, info.size)], [info.version]))
    tables = archive_tables(info.uri, info.version, packing, skipped)
    return Source(location, _NO_COLUMNS, tables, f"Archive {location} holds no images.")


def _describe(location: str) -> FileInfo:
    """Describe a file that the user named: a remote one is worth a request."""
    if storage.is_remote(location):
        with contextlib.suppress(InputError):  # who may read may not be allowed to list
            for info in storage.glob_files(glob.escape(location)):
                return info
    return storage.file_info(location)


def _single(row: pa.Table) -> Source:
    where: str = row.column("uri")[0].as_py()
    return Source(where, _NO_COLUMNS, iter([row]), f"{where} holds no image.")


def _open_address(location: str) -> Source:
    """Take an http(s) address for an image; whether it may be fetched is asked when it is read."""
    path = location.lower().partition("?")[0]
    if path.endswith((*TABLE_EXTENSIONS, *ARCHIVES)) or is_unread_name(path):
        raise InputError(
            f"{location} is not read from the net: only images are; download it, and name the file."
        )
    return _single(list_locations([location]))
