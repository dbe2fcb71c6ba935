"""From shard results to the output that others read.

    OUTPUT/
      part-00000.parquet …      results in the order of the manifest
      _SUCCESS                  put last: the output is complete
      _eagleray/                plan, manifest, shard results, report; readers skip it by convention

Until the parts are complete a reader sees no result at all.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet

from eagleray import storage
from eagleray.batch.results import OutputFormat, encode_table
from eagleray.batch.shards import shard_file
from eagleray.errors import InputError, JobFailedError, OutputExistsError

__all__ = ["OutputLayout", "commit", "read_shards", "require_free_output"]

_ROWS_PER_PART = 500_000


class OutputLayout:
    """Where everything of one output is.

    Args:
        location: The folder or URI that the user named.
    """

    def __init__(self, location: str) -> None:
        self.location = storage.absolute(location)
        self.private = storage.join(self.location, "_eagleray")
        self.manifest = storage.join(self.private, "manifest.parquet")
        self.plan = storage.join(self.private, "plan.json")
        self.shards = storage.join(self.private, "shards")
        self.report = storage.join(self.private, "report.html")
        self.success = storage.join(self.location, "_SUCCESS")

    def part(self, number: int, output_format: OutputFormat) -> str:
        """The location of a result file."""
        return storage.join(self.location, f"part-{number:05d}.{output_format}")


def require_free_output(location: str) -> None:
    """Refuse an output that holds anything, or that cannot be written.

    Raises:
        OutputExistsError: Something is there.
        InputError: It cannot be written.
    """
    layout = OutputLayout(location)
    if storage.exists(layout.location):
        if not storage.is_folder(layout.location):
            raise OutputExistsError(f"Output {location} is a file; name a folder that is new.")
        if next(storage.list_files(layout.location), None) is not None:
            raise OutputExistsError(
                f"Output {location} is not empty, and results are never overwritten; name another "
                "folder, or remove this one."
            )
    try:
        storage.make_folder(layout.private)
    except OSError as error:
        raise InputError(
            f"Output {location} cannot be written ({error.strerror or error}); name another folder."
        ) from None


def read_shards(
    layout: OutputLayout, num_shards: int, *, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the shards' results in order, all columns or some.

    Raises:
        JobFailedError: A shard has no result.
    """
    for number in range(num_shards):
        location = storage.join(layout.shards, shard_file(number))
        try:
            content = storage.read_bytes(location)
        except FileNotFoundError:
            raise JobFailedError(f"Shard {number} has no result at {location}.") from None
        yield pyarrow.parquet.read_table(io.BytesIO(content), columns=columns)


def commit(
    layout: OutputLayout, num_shards: int, num_rows: int, output_format: OutputFormat
) -> list[str]:
    """Merge shard results into parts, check that every row is there once, and mark the output.

    Args:
        layout: Of the output.
        num_shards: How many there are.
        num_rows: Of the manifest.
        output_format: Of the parts.

    Returns:
        Locations of the parts.

    Raises:
        JobFailedError: Rows are lost or doubled; nothing was committed.
    """
    _require_every_row(layout, num_shards, num_rows)
    parts: list[str] = []
    waiting: list[pa.Table] = []
    for number, table in enumerate(read_shards(layout, num_shards), start=1):
        waiting.append(table)
        if number == num_shards or sum(part.num_rows for part in waiting) >= _ROWS_PER_PART:
            location = layout.part(len(parts), output_format)
            storage.put_atomic(location, encode_table(pa.concat_tables(waiting), output_format))
            parts.append(location)
            waiting = []
    storage.put_atomic(layout.success, b"")
    storage.remove_tree(layout.shards)
    return parts


def _require_every_row(layout: OutputLayout, num_shards: int, num_rows: int) -> None:
    """Check that the shards hold rows 0 to `num_rows` - 1, in order, each once."""
    next_row = 0
    for table in read_shards(layout, num_shards, columns=["row"]):
        expected = list(range(next_row, next_row + table.num_rows))
        if table.column("row").to_pylist() != expected:
            raise JobFailedError(
                f"The shard that should start at row {next_row} holds other rows; nothing was "
                f"committed, and the shards are kept in {layout.shards}."
            )
        next_row += table.num_rows
    if next_row != num_rows:
        raise JobFailedError(
            f"{num_rows} images went in and {next_row} results came out; nothing was committed, "
            f"and the shards are kept in {layout.shards}."
        )
