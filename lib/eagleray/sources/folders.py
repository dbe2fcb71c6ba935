"""Folders and patterns: the files in them, with archives and tables of images opened in place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.read_ahead import join_streams
from eagleray.io.tables import TABLE_EXTENSIONS, open_table
from eagleray.sources.archives import ARCHIVES, archive_packing, archive_tables
from eagleray.sources.columns import find_image_column
from eagleray.sources.listing import InputSpec, Source, listing_of_files
from eagleray.sources.path_policy import check_files
from eagleray.sources.schema_merge import conform, unite
from eagleray.sources.skipped import SkippedFiles, skipped_kind
from eagleray.sources.tables import open_images, open_tabled
from eagleray.sources.unsupported import UNREAD_ARCHIVES, UNREAD_EXTENSIONS, refuse_unread_archive

__all__ = ["open_folder", "open_pattern"]

_PEEK_ROWS = 8192
_PARQUET = (".parquet", ".pq")
_OPENED_IN_PLACE = (*ARCHIVES, *_PARQUET, *UNREAD_ARCHIVES)

_NO_IMAGES = (*(name for name in TABLE_EXTENSIONS if name not in _PARQUET), *UNREAD_EXTENSIONS)
_MAGIC = re.compile(r"[*?\[]")
# Any part of a path that is skipped, for Arrow's kernels.
_SKIPPED = f"(^|/)({'|'.join(storage.SKIPPED_KINDS.values())})(/|$)"

_NO_COLUMNS = pa.schema([])


def open_folder(location: str, spec: InputSpec, skipped: SkippedFiles) -> Source:
    """Open a folder or prefix: every file at any depth, in name order, less the skipped ones.

    A folder that holds nothing but tables is a data set: its tables are read one after the other.

    Raises:
        InputError: It holds nothing, cannot be listed, or a table in it cannot be read.
    """
    root = storage.absolute(location).rstrip("/") or "/"
    listed = storage.list_tables(root, spec.policy)
    files = (_without_skipped(table, root, skipped) for table in listed)
    nothing = f"Folder {location} holds no files; name one that holds images."
    return _open_files(location, files, spec, skipped, nothing)


def open_pattern(location: str, spec: InputSpec, skipped: SkippedFiles) -> Source:
    """Open a glob pattern: every file that matches, in name order, less the skipped ones.

    A name that the pattern spells out is not skipped, and a hidden one is not where a part of the
    pattern begins with a dot. Matches that are tables without exception are read as such, one after
    the other.

    Raises:
        InputError: Nothing matches, or a table cannot be read.
    """
    pattern = storage.absolute(location)
    root = _MAGIC.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    parts = pattern[len(root) + 1 :].split("/")
    spelled_out = frozenset(part for part in parts if not _MAGIC.search(part))
    hidden_too = any(part.startswith(".") for part in parts)
    files = storage.glob_tables(location, spec.policy)
    if not hidden_too:
        files = (_without_skipped(table, root, skipped, spelled_out) for table in files)
    return _open_files(location, files, spec, skipped, f"No file matches the pattern {location}.")


def _without_skipped(
    files: pa.Table, root: str, skipped: SkippedFiles, asked_for: Collection[str] = ()
) -> pa.Table:
    """Leave out files whose name, or that of a folder below the root, is skipped."""
    below = pc.utf8_slice_codeunits(files.column("uri"), len(root.rstrip("/")) + 1)
    mask = pc.match_substring_regex(below, _SKIPPED)
    if not pc.any(mask).as_py():
        return files
    left_out = []
    for index in pc.indices_nonzero(mask).to_pylist():
        path = below[index].as_py()
        kind = skipped_kind(path, asked_for)
        if kind is not None:
            skipped.add(kind, path)
            left_out.append(index)
    keep = np.ones(files.num_rows, bool)
    keep[left_out] = False
    return files.filter(pa.array(keep))


def _open_files(
    location: str,
    files: Iterator[pa.Table],
    spec: InputSpec,
    skipped: SkippedFiles,
    nothing: str,
) -> Source:
    files = check_files(files, location, spec.policy)
    peeked, complete = _peek(files)
    if not peeked:
        raise InputError(" ".join(filter(None, (nothing, skipped.describe()))))
    if complete and _all_end_with(peeked, TABLE_EXTENSIONS):
        return _open_data_set(location, peeked, spec)
    if complete and _all_end_with(peeked, _NO_IMAGES):
        example = storage.name_of(peeked[0].column("uri")[0].as_py())
        raise InputError(
            f"{location} holds no images, but tables and other files such as {example}; name the "
            "table of images on its own."
        )
    found = _Found(_open_parquet_files(peeked, spec), spec, skipped)
    tables = join_streams(found.pieces(itertools.chain(peeked, files)))
    nothing = f"{location} holds no images."
    return Source(location, found.user_schema, tables, nothing, found.notes)


def _peek(files: Iterator[pa.Table]) -> tuple[list[pa.Table], bool]:
    """Read a listing until it is clear what it is.

    Returns:
        The tables read, and whether they are all: those of more than a few thousand files are only
        where all of these are tables.
    """
    peeked: list[pa.Table] = []
    num_rows, only_tables = 0, True
    for table in files:
        if table.num_rows:
            peeked.append(table)
        num_rows += table.num_rows
        only_tables = only_tables and _all_end_with([table], TABLE_EXTENSIONS)
        if num_rows >= _PEEK_ROWS and not only_tables:
            return peeked, False
    return peeked, True


def _all_end_with(files: Iterable[pa.Table], extensions: Sequence[str]) -> bool:
    return all(pc.all(_ends_with(table, extensions)).as_py() for table in files)


def _ends_with(files: pa.Table, extensions: Iterable[str]) -> pa.ChunkedArray:
    escaped = "|".join(extension.replace(".", r"\.") for extension in extensions)
    return pc.match_substring_regex(files.column("uri"), f"({escaped})$", ignore_case=True)


def _names_and_versions(files: Iterable[pa.Table]) -> Iterator[tuple[str, str]]:
    for table in files:
        uris, versions = table.column("uri").to_pylist(), table.column("version").to_pylist()
        yield from zip(uris, versions, strict=True)


# --- a folder of tables -----------------------------------------------------------------------


def _open_data_set(location: str, files: Iterable[pa.Table], spec: InputSpec) -> Source:
    def open_one(file: tuple[str, str]) -> Source:
        return open_tabled(file[0], spec, file[1], may_be_empty=True)

    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(open_one, _names_and_versions(files)))
    user_schema = unite((source.where, source.user_schema) for source in sources)
    return Source(
        where=location,
        user_schema=user_schema,
        tables=join_streams(_conformed(source, user_schema) for source in sources),
        nothing=f"The tables in {location} have no rows.",
        notes=tuple(note for source in sources for note in source.notes),
    )


def _conformed(source: Source, user_schema: pa.Schema) -> Iterator[pa.Table]:
    for table in source.tables:
        yield conform(table, user_schema, source.where)


# --- a folder of files ------------------------------------------------------------------------


def _open_images_of(uri: str, version: str, spec: InputSpec) -> Source | None:
    """Open a Parquet file that was found; None if it holds no images, and so is any file."""
    table = open_table(uri, may_be_empty=True)
    chosen = find_image_column(table.schema, spec.column, uri)
    if chosen is None or not chosen.holds_images:
        return None
    return open_images(table, chosen, version, spec.policy)


def _open_parquet_files(peeked: Iterable[pa.Table], spec: InputSpec) -> dict[str, Source | None]:
    files = list(_names_and_versions(table.filter(_ends_with(table, _PARQUET)) for table in peeked))
    with ThreadPoolExecutor(8) as pool:
        opened = pool.map(lambda file: _open_images_of(file[0], file[1], spec), files)
        return {uri: source for (uri, _), source in zip(files, opened, strict=True)}


@dataclass(frozen=True, slots=True)
class _Found:
    """What is done with files of all kinds.

    Attributes:
        opened: Parquet files that are open already, by location; None for those without images.
        spec: What the user named.
        skipped: Counts the members of archives that are no inputs.
    """

    opened: Mapping[str, Source | None]
    spec: InputSpec
    skipped: SkippedFiles

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        """What was decided in reading the tables found at first."""
        found = (source for source in self.opened.values() if source is not None)
        return tuple(note for source in found for note in source.notes)

    @property
    def user_schema(self) -> pa.Schema:
        """The columns that come along: those of the tables found at first."""
        found = (source for source in self.opened.values() if source is not None)
        return unite((source.where, source.user_schema) for source in found)

    def pieces(self, listing: Iterable[pa.Table]) -> Iterator[Iterable[pa.Table]]:
        """Cut a listing into rows that are images, and streams of what has images inside."""
        schema = self.user_schema
        for files in listing:
            start = 0
            in_place = pc.indices_nonzero(_ends_with(files, _OPENED_IN_PLACE)).to_pylist()
            for index in in_place:
                if index > start:
                    yield (_plain(files.slice(start, index - start), schema),)
                yield self._open(files.slice(index, 1), schema)
                start = index + 1
            if start < files.num_rows:
                yield (_plain(files.slice(start), schema),)

    def _open(self, file: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
        uri, version = file.column("uri")[0].as_py(), file.column("version")[0].as_py()
        refuse_unread_archive(uri)
        packing = archive_packing(uri)
        if packing is not None:
            tables = archive_tables(uri, version, packing, self.skipped)
        else:
            source = (
                self.opened[uri] if uri in self.opened else _open_images_of(uri, version, self.spec)
            )
            tables = iter([_plain(file, _NO_COLUMNS)]) if source is None else source.tables
        for table in tables:
            yield conform(table, schema, uri)


def _plain(files: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = (files.column(name) for name in ("uri", "size", "version"))
    return conform(listing_of_files(*columns), schema, "")
