"""Opens all locations that a user names as one stream of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.io.read_ahead import read_ahead
from eagleray.sources.listing import InputSpec, Listing, OpenedSource
from eagleray.sources.path_policy import require_readable, restrict_listing
from eagleray.sources.schema_merge import conform, merge_schemas
from eagleray.sources.skipped import SkippedFiles
from eagleray.sources.source import registered_sources

__all__ = ["open_inputs"]


def open_inputs(spec: InputSpec) -> Listing:
    """Open all that the user named.

    Returns:
        The user's columns, known now, and the rows, listed while they are read: locations in the
        order given, folders in the order of names, archives and tables in their own.

    Raises:
        InputError: If a location may not be read, is not there, holds nothing, or is a table, a
            list or an archive of a kind that is not read. What shows only by listing is raised
            while the rows are read.
        UnknownNameError: If a table lacks the column.
    """
    require_readable(spec.locations, spec.policy)
    kinds = registered_sources()
    skipped = SkippedFiles()

    def open_one(location: str) -> OpenedSource:
        kind = next(kind for kind in kinds if kind.matches(location))
        return kind.open(location, spec, skipped)

    sources = list(read_ahead(open_one, spec.locations))
    user_schema = merge_schemas((source.where, source.user_schema) for source in sources)
    listing = Listing(
        user_schema,
        _tables(sources, user_schema, skipped),
        _sentences(note for source in sources for note in source.notes),
        skipped,
        sources[0].root if len(sources) == 1 else None,
        tuple(name for source in sources for name in source.byte_columns),
    )
    return restrict_listing(listing, spec.policy)


def _sentences(notes: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Make a sentence of each note, and one of those that are the same for several tables."""
    tables: dict[str, list[str]] = {}
    for where, note in notes:
        tables.setdefault(note, []).append(where)
    return tuple(
        f"{places[0]}{f' and {len(places) - 1:,} more' * (len(places) > 1)}: {note}."
        for note, places in tables.items()
    )


def _tables(
    sources: Sequence[OpenedSource], user_schema: pa.Schema, skipped: SkippedFiles
) -> Iterator[pa.Table]:
    for source in sources:
        num_rows = 0
        for table in source.tables:
            num_rows += table.num_rows
            yield conform(table, user_schema, source.where)
        if num_rows == 0:
            raise InputError(" ".join(filter(None, (source.nothing, skipped.describe()))))
