"""Reads images from the cells of a Parquet column, and the paths of cells without bytes."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import BadImageError, InputError, Reason
from eagleray.io.parquet_table import open_parquet
from eagleray.io.storage import StorageUnavailableError

__all__ = ["CellReader", "is_image_type", "may_contain_paths", "read_paths"]

_BYTES_FIELD = "bytes"  # Hugging Face stores an image as a struct of its bytes and its path
_PATH_FIELD = "path"
_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 64
_WINDOW_BYTES = 64 * 2**20
_WINDOW_ROWS = 32  # rows between the first and the last thread, however large the images


def is_image_type(kind: pa.DataType) -> bool:
    """Whether cells of an Arrow type are encoded images: bytes, or a struct with a bytes field."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index(_BYTES_FIELD)
        if index < 0:
            return False
        cells = kind.field(index).type
        # A column of nulls has no type: all images are referenced by their paths.
        return is_image_type(cells) or (
            pa.types.is_null(cells) and kind.get_field_index(_PATH_FIELD) >= 0
        )
    return any(
        test(kind)
        for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


@dataclass(slots=True)
class _Batch:
    first_row: int
    cells: pa.Array

    def __contains__(self, row: int) -> bool:
        return self.first_row <= row < self.first_row + len(self.cells)


@dataclass(slots=True)
class _Window:
    """Recently read cells, as threads that share a file read slightly out of order."""

    batches: deque[_Batch] = field(default_factory=deque)
    num_rows: int = 0
    num_bytes: int = 0

    def find(self, row: int) -> _Batch | None:
        return next((batch for batch in reversed(self.batches) if row in batch), None)

    def add(self, batch: _Batch) -> None:
        self.batches.append(batch)
        self.num_rows += len(batch.cells)
        self.num_bytes += batch.cells.nbytes
        while (
            self.num_bytes > _WINDOW_BYTES
            and self.num_rows - len(self.batches[0].cells) >= _WINDOW_ROWS
        ):
            oldest = self.batches.popleft()
            self.num_rows -= len(oldest.cells)
            self.num_bytes -= oldest.cells.nbytes


class CellReader:
    """Reads the cells of one column of a file, efficiently in ascending order; thread-safe.

    Rows are decoded forward, a few at a time, from the start of their row group; a row far before
    the last one restarts the row group.

    Args:
        location: Location of the Parquet file.
        column: Name of a column of bytes, or of structs with a field `bytes`.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read from the storage.
        InputError: If it is not a Parquet file, or has no such column.
    """

    def __init__(self, location: str, column: str) -> None:
        self._file = open_parquet(location)
        schema = self._file.schema_arrow
        index = schema.get_field_index(column)
        if index < 0 or not is_image_type(schema.field(index).type):
            raise InputError(f"{location} has no column of images named {column!r}")
        nested = pa.types.is_struct(schema.field(index).type)
        self._leaf = f"{column}.{_BYTES_FIELD}" if nested else column
        groups = (
            self._file.metadata.row_group(group).num_rows
            for group in range(self._file.num_row_groups)
        )
        self._starts = list(itertools.accumulate(groups, initial=0))
        self._lock = threading.Lock()
        self._batches: Iterator[_Batch] = iter(())
        self._group = -1
        self._next_row = 0
        self._window = _Window()
        self._damaged: dict[int, tuple[int, str]] = {}

    def read(self, row: int) -> bytes | None:
        """Return the bytes in a cell; None if it is empty.

        Raises:
            BadImageError: If there is no such row (`missing`), or it is damaged (`unreadable`).
        """
        if not 0 <= row < self._starts[-1]:
            raise BadImageError(
                Reason.MISSING, f"the table has {self._starts[-1]:,} rows, and this is row {row:,}"
            )
        with self._lock:
            batch = self._window.find(row) or self._advance_to(row)
        cell: bytes | None = batch.cells[row - batch.first_row].as_py()
        return cell

    def _advance_to(self, row: int) -> _Batch:
        group = bisect.bisect_right(self._starts, row) - 1
        first_bad, problem = self._damaged.get(group, (row + 1, ""))
        if row >= first_bad:
            raise BadImageError(Reason.UNREADABLE, f"the table is damaged: {problem}")
        if group != self._group or row < self._next_row:
            self._group, self._next_row = group, self._starts[group]
            self._batches = self._read_group(group)
        try:
            for batch in self._batches:
                self._next_row = batch.first_row + len(batch.cells)
                self._window.add(batch)
                if row in batch:
                    return batch
            problem = "a row group is shorter than its metadata says"
        except StorageUnavailableError:
            self._group = -1
            raise
        except (pa.ArrowException, OSError) as error:
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Each of the following rows would decode the row group again.
        self._damaged[group], self._group = (self._next_row, problem), -1
        raise BadImageError(Reason.UNREADABLE, f"the table is damaged: {problem}")

    def _read_group(self, group: int) -> Iterator[_Batch]:
        first_row = self._starts[group]
        for batch in self._file.iter_batches(
            batch_size=self._batch_rows(group),
            row_groups=[group],
            columns=[self._leaf],
            use_threads=False,
        ):
            cells = batch.column(0)
            if pa.types.is_struct(cells.type):
                cells = cells.flatten()[0]
            yield _Batch(first_row, cells)
            first_row += len(cells)

    def _batch_rows(self, group: int) -> int:
        """Return the number of rows that take a few megabytes, by the row group's average."""
        metadata = self._file.metadata.row_group(group)
        chunk = next(
            metadata.column(index)
            for index in range(metadata.num_columns)
            if metadata.column(index).path_in_schema == self._leaf
        )
        average = max(1, chunk.total_uncompressed_size // max(1, metadata.num_rows))
        return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // average)))


# --- cells with a path only --------------------------------------------------------------------


def may_contain_paths(location: str, column: str, kind: pa.DataType) -> bool:
    """Whether some cells may have a path and no bytes, as in Hugging Face's data sets.

    This is decided by the file's statistics, or by the first cells if there are none.

    Args:
        location: Location of the Parquet file.
        column: Name of a column of images.
        kind: Arrow type of the column.

    Raises:
        InputError: If the file cannot be read.
    """
    if not pa.types.is_struct(kind) or kind.get_field_index(_PATH_FIELD) < 0:
        return False
    leaf = f"{column}.{_BYTES_FIELD}"
    with _wrap_errors(location), open_parquet(location) as file:
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        counts = [_num_nulls(group, leaf) for group in groups]
    if None not in counts:
        return any(counts)
    _, paths = next(read_paths(location, column, ()), (None, []))
    return any(paths)


def _num_nulls(group: Any, leaf: str) -> int | None:
    chunks = map(group.column, range(group.num_columns))
    statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf)
    return statistics.null_count if statistics and statistics.has_null_count else None


def read_paths(
    location: str, column: str, others: Sequence[str]
) -> Iterator[tuple[pa.Table, list[str | None]]]:
    """Yield further columns of a table, with the path of each row whose image has no bytes.

    Args:
        location: Location of the Parquet file.
        column: Name of a column of structs of bytes and path.
        others: Names of the columns to yield; the bytes are read along with them.

    Raises:
        InputError: If the file cannot be read, or is damaged.
    """
    leaves = [f"{column}.{field}" for field in (_BYTES_FIELD, _PATH_FIELD)]
    with _wrap_errors(location), open_parquet(location) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=[*leaves, *others], use_threads=False)
        for batch in batches:
            cells = batch.column(column)
            empty = pc.struct_field(cells, _BYTES_FIELD).is_null()
            paths = pc.if_else(empty, pc.struct_field(cells, _PATH_FIELD), None)
            yield pa.Table.from_batches([batch]).select(others), paths.to_pylist()


@contextlib.contextmanager
def _wrap_errors(location: str) -> Iterator[None]:
    """Turn errors of reading a table into one sentence."""
    try:
        yield
    except pa.ArrowException as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is damaged ({problem}); copy it again.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
