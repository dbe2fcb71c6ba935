"""Turns listed files into inputs: archives and tables of images among them are opened in place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.read_ahead import join_streams, read_ahead
from eagleray.io.tables import TABLE_EXTENSIONS, open_table
from eagleray.sources.archives import ARCHIVES, archive_packing, archive_tables
from eagleray.sources.columns import find_image_column
from eagleray.sources.listing import InputSpec, OpenedSource, listing_of_files
from eagleray.sources.path_policy import check_files
from eagleray.sources.schema_merge import conform, merge_schemas
from eagleray.sources.skipped import SkippedFiles
from eagleray.sources.tables import open_images, open_rows
from eagleray.sources.unsupported import UNREAD_ARCHIVES, UNREAD_EXTENSIONS, refuse_unread_archive

__all__ = ["open_files"]

_PEEK_ROWS = 8192
_PARQUET = (".parquet", ".pq")
_OPENED_IN_PLACE = (*ARCHIVES, *_PARQUET, *UNREAD_ARCHIVES)

_NO_IMAGES = (*(name for name in TABLE_EXTENSIONS if name not in _PARQUET), *UNREAD_EXTENSIONS)
_NO_COLUMNS = pa.schema([])


def open_files(
    location: str,
    root: str,
    files: Iterator[pa.Table],
    spec: InputSpec,
    skipped: SkippedFiles,
    nothing: str,
) -> OpenedSource:
    """Open the files of a folder or a pattern.

    If all of them are tables, they are a data set, and are read one after the other.

    Args:
        location: The folder or pattern, as the user wrote it.
        root: Text that the URIs of all files begin with.
        files: Tables of `uri`, `size` and `version`, as storage lists them.
        spec: The request.
        skipped: Counts the members of archives that are not inputs.
        nothing: Sentence for a location without files.

    Raises:
        InputError: If there are no files, none of them may be an image, or a table cannot be read.
    """
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
    opened = _open_parquet_files(peeked, spec) if spec.unpack else {}
    found = _FoundFiles(opened, spec, skipped)
    tables = join_streams(found.pieces(itertools.chain(peeked, files)))
    nothing = f"{location} holds no images."
    return OpenedSource(location, found.user_schema, tables, nothing, found.notes, root)


def _peek(files: Iterator[pa.Table]) -> tuple[list[pa.Table], bool]:
    """Read a listing until it is clear whether it holds tables alone.

    Returns:
        The part that was read, and whether it is all of the listing. A listing of more than a few
        thousand files is read to its end only if all of them are tables.
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


def _open_data_set(location: str, files: Iterable[pa.Table], spec: InputSpec) -> OpenedSource:
    def open_one(file: tuple[str, str]) -> OpenedSource:
        return open_rows(file[0], spec, file[1], may_be_empty=True)

    sources = list(read_ahead(open_one, _names_and_versions(files)))
    user_schema = merge_schemas((source.where, source.user_schema) for source in sources)
    return OpenedSource(
        where=location,
        user_schema=user_schema,
        tables=join_streams(_conformed(source, user_schema) for source in sources),
        nothing=f"The tables in {location} have no rows.",
        notes=tuple(note for source in sources for note in source.notes),
        byte_columns=tuple(name for source in sources for name in source.byte_columns),
    )


def _conformed(source: OpenedSource, user_schema: pa.Schema) -> Iterator[pa.Table]:
    for table in source.tables:
        yield conform(table, user_schema, source.where)


# --- a folder of files ------------------------------------------------------------------------


def _open_images_of(uri: str, version: str, spec: InputSpec) -> OpenedSource | None:
    """Open a Parquet file that was found; return None if it holds no images."""
    table = open_table(uri, may_be_empty=True)
    chosen = find_image_column(table.schema, spec.column, uri)
    if chosen is None or not chosen.holds_images:
        return None
    return open_images(table, chosen, version, spec.policy)


def _open_parquet_files(
    peeked: Iterable[pa.Table], spec: InputSpec
) -> dict[str, OpenedSource | None]:
    files = list(_names_and_versions(table.filter(_ends_with(table, _PARQUET)) for table in peeked))
    opened = read_ahead(lambda file: _open_images_of(file[0], file[1], spec), files)
    return {uri: source for (uri, _), source in zip(files, opened, strict=True)}


@dataclass(frozen=True, slots=True)
class _FoundFiles:
    """Opens the files of a listing that have images inside.

    Attributes:
        opened: Parquet files that are open already, by location; None for those without images.
        spec: The request.
        skipped: Counts the members of archives that are not inputs.
    """

    opened: Mapping[str, OpenedSource | None]
    spec: InputSpec
    skipped: SkippedFiles

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        """Notes on the tables that are open already."""
        found = (source for source in self.opened.values() if source is not None)
        return tuple(note for source in found for note in source.notes)

    @property
    def user_schema(self) -> pa.Schema:
        """The user's columns: those of the tables that are open already."""
        found = (source for source in self.opened.values() if source is not None)
        return merge_schemas((source.where, source.user_schema) for source in found)

    def pieces(self, listing: Iterable[pa.Table]) -> Iterator[Iterable[pa.Table]]:
        """Cut a listing into rows of files, and streams of the rows inside archives and tables."""
        schema = self.user_schema
        for files in listing:
            start = 0
            for index in self._opened_in_place(files):
                if index > start:
                    yield (_plain(files.slice(start, index - start), schema),)
                yield self._open(files.slice(index, 1), schema)
                start = index + 1
            if start < files.num_rows:
                yield (_plain(files.slice(start), schema),)

    def _opened_in_place(self, files: pa.Table) -> list[int]:
        if not self.spec.unpack:
            return []
        found: list[int] = pc.indices_nonzero(_ends_with(files, _OPENED_IN_PLACE)).to_pylist()
        return found

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
