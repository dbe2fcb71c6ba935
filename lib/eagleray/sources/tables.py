"""Source of the images in a table: locations, also of packed images, or the images themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.core.file_names import escape_file_name
from eagleray.io import storage
from eagleray.io.fetch import ImageSource
from eagleray.io.fetch.locate import Locator, may_read, parse_packed_uri
from eagleray.io.fetch.parquet import is_image_type, may_contain_paths, read_paths
from eagleray.io.fetch.source import describe_inline_image, packed_uri, packing_of
from eagleray.io.storage import PathPolicy
from eagleray.io.tables import TABLE_EXTENSIONS, TableFile, beside, open_table
from eagleray.sources.columns import ImageColumn, require_image_column
from eagleray.sources.listing import (
    LISTING_SCHEMA,
    ROWS_AT_ONCE,
    InputSpec,
    OpenedSource,
    describe_file,
    listing_of_sources,
    packed_version,
    with_user_columns,
)
from eagleray.sources.schema_merge import user_fields
from eagleray.sources.skipped import SkippedFiles
from eagleray.sources.source import Source

__all__ = ["TABLE", "list_locations", "open_images", "open_rows"]


def open_rows(
    location: str, spec: InputSpec, version: str, *, may_be_empty: bool = False
) -> OpenedSource:
    """Open a table whose rows are images or locations.

    Args:
        location: Location of the table, which may be read.
        spec: Names the column, and the locations that may be read.
        version: Version of the table.
        may_be_empty: Whether it may have no rows, as one of several may.

    Raises:
        InputError: If it is not a table, the column holds neither, or several columns may.
        UnknownNameError: If it has no such column.
    """
    table = open_table(location, may_be_empty=may_be_empty)
    if table.num_rows == 0 and not table.schema.names:  # JSON lines without a line
        return OpenedSource(location, table.schema, iter(()), f"{location} has no rows.")
    chosen = require_image_column(table.schema, spec.column, location)
    if chosen.holds_images:
        return open_images(table, chosen, version, spec.policy)
    return _open_list(table, chosen, spec.policy)


def _notes_of(table: TableFile, chosen: ImageColumn) -> tuple[tuple[str, str], ...]:
    """Return what was decided in reading a table, as `OpenedSource` has it."""
    notes = (*table.notes, *([chosen.note] if chosen.note else []))
    return tuple((table.location, one) for one in notes)


def _byte_columns(table: TableFile) -> tuple[str, ...]:
    return tuple(field.name for field in table.schema if is_image_type(field.type))


# --- tables of images -------------------------------------------------------------------------


def open_images(
    table: TableFile, column: ImageColumn, version: str, policy: PathPolicy
) -> OpenedSource:
    """Open a Parquet file whose rows are images.

    Other columns of image bytes do not come along: masks and the like would fill the results.

    Args:
        table: The open file.
        column: Column of images.
        version: Version of the table.
        policy: Locations that may be read, where cells name locations instead.
    """
    user_schema = user_fields(table.schema, lambda field: is_image_type(field.type))
    return OpenedSource(
        where=table.location,
        user_schema=user_schema,
        tables=_image_tables(table, column.name, user_schema.names, version, policy),
        nothing=f"{table.location} has no rows.",
        notes=_notes_of(table, column),
        byte_columns=_byte_columns(table),
    )


def _image_tables(
    table: TableFile, column: str, user: Sequence[str], version: str, policy: PathPolicy
) -> Iterator[pa.Table]:
    container = storage.absolute(table.location)
    rows = partial(_cells, container, escape_file_name(column), version)
    if may_contain_paths(table.location, column, table.schema.field(column).type):
        yield from _image_or_path_tables(table, column, user, rows, Locator(policy))
        return
    first = 0
    if user:
        for block in table.read(user):
            yield with_user_columns(rows(first, block.num_rows), block)
            first += block.num_rows
        return
    assert table.num_rows is not None
    for first in range(0, table.num_rows, ROWS_AT_ONCE):
        yield rows(first, min(ROWS_AT_ONCE, table.num_rows - first))


def _image_or_path_tables(
    table: TableFile,
    column: str,
    user: Sequence[str],
    rows: Callable[[int, int], pa.Table],
    locator: Locator,
) -> Iterator[pa.Table]:
    """Yield the rows of a table some of whose images are only named, by the path in their cell.

    They become rows of their locations here and not when they are read, so that the path policy of
    a job applies to them.
    """
    resolve = beside(table.location)
    first = 0
    for block, paths in read_paths(table.location, column, user):
        listing = rows(first, block.num_rows)
        first += block.num_rows
        named = [index for index, path in enumerate(paths) if path]
        if named:
            located = list_locations([paths[index] for index in named], resolve, locator)
            both = pa.concat_tables([listing, located])
            places = list(range(block.num_rows))
            for place, index in enumerate(named):
                places[index] = block.num_rows + place
            listing = both.take(places)
        yield with_user_columns(listing, block)


def _cells(container: str, column: str, version: str, first: int, count: int) -> pa.Table:
    numbers = pa.array(np.arange(first, first + count))
    texts = pc.cast(numbers, pa.string())
    uris = pc.binary_join_element_wise(
        pa.scalar(f"parquet://{column}/"), texts, pa.scalar(f"::{container}"), ""
    )
    versions = (
        pc.binary_join_element_wise(pa.scalar(version), texts, ":")
        if version
        else pa.array([""] * count, pa.string())
    )
    return pa.table(
        [
            uris,
            pa.nulls(count, pa.int64()),
            versions,
            pa.array(["parquet"] * count, pa.string()),
            pa.array([container] * count, pa.string()),
            numbers,
        ],
        schema=LISTING_SCHEMA,
    )


# --- tables of locations ----------------------------------------------------------------------


def _open_list(table: TableFile, column: ImageColumn, policy: PathPolicy) -> OpenedSource:
    name = column.name
    user_schema = user_fields(
        table.schema, lambda field: field.name == name or is_image_type(field.type)
    )
    return OpenedSource(
        where=table.location,
        user_schema=user_schema,
        tables=_list_tables(table, name, user_schema.names, Locator(policy)),
        nothing=f"{table.location} has no rows.",
        notes=_notes_of(table, column),
        byte_columns=_byte_columns(table),
    )


def _require_location(value: str, table: TableFile, column: str) -> None:
    """Refuse a column whose first value is an image in base64.

    Raises:
        InputError: If it is one.
    """
    inline = describe_inline_image(value)
    if inline is not None:
        raise InputError(
            f"Column {column!r} of {table.location} holds images as {inline} and not their "
            "locations, which is not read from tables; write the images into files, or their bytes "
            "into a binary column of a Parquet file."
        )


def _list_tables(
    table: TableFile, column: str, user: Sequence[str], locator: Locator
) -> Iterator[pa.Table]:
    resolve = beside(table.location)
    first = None
    for block in table.read([column, *user]):
        uris = pc.cast(block.column(0), pa.string()).to_pylist()
        if first is None:
            first = next(filter(None, uris), None)
            _require_location(first or "", table, column)
        listing = list_locations(uris, resolve, locator)
        yield with_user_columns(listing, block.select(range(1, block.num_columns)))


def list_locations(
    uris: Sequence[str | None],
    resolve: Callable[[str], str] = storage.absolute,
    locator: Locator | None = None,
) -> pa.Table:
    """Make a row for each location.

    Rows of local files have their size and version; those of remote ones do not, since that would
    cost a request each. Images in archives and tables are looked up. Those that are missing stay,
    as empty cells do, and fail when they are read. Locations that the locator's policy does not
    allow are not looked up.

    Args:
        uris: The locations.
        resolve: Makes a location absolute.
        locator: Finds packed images.
    """
    locator = locator or Locator()
    found = [_locate(uri or "", resolve, locator) for uri in uris]
    return listing_of_sources([source for source, _ in found], [version for _, version in found])


def _locate(uri: str, resolve: Callable[[str], str], locator: Locator) -> tuple[ImageSource, str]:
    if not uri:
        return ImageSource(uri=""), ""
    if packing_of(uri) is None:
        location = resolve(uri)
        if not may_read(ImageSource(location), locator.policy):
            return ImageSource(location), ""
        info = storage.file_info(location)
        if not info.version and describe_inline_image(uri) is not None:
            return ImageSource(uri), ""  # as it is, so that its row says what it is
        return ImageSource(info.uri, info.size), info.version
    try:
        source, version = locator.find(uri, resolve)
    except (OSError, InputError):
        packing, name, container = parse_packed_uri(uri, resolve, locator.policy)
        return ImageSource(packed_uri(packing, name, container)), ""
    return source, packed_version(version, source.offset)


def _open_table(location: str, spec: InputSpec, _skipped: SkippedFiles) -> OpenedSource:
    return open_rows(location, spec, describe_file(location).version)


TABLE = Source("table", lambda location: location.lower().endswith(TABLE_EXTENSIONS), _open_table)
