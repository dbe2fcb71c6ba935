"""Images in the cells of a Parquet column: which column that is, and the bytes of its rows."""

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
from eagleray.io.storage import StorageUnavailableError
from eagleray.io.tables import open_parquet

__all__ = ["CellReader", "is_image_type", "may_contain_paths", "read_paths"]

_STRUCT_FIELD = "bytes"  # Hugging Face stores an image as a struct of its bytes and its path
_PATH_FIELD = "path"
_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 64
_WINDOW_BYTES = 64 * 2**20
_WINDOW_ROWS = 32  # rows that threads may be apart, however large their images are


def is_image_type(kind: pa.DataType) -> bool:
    """Whether cells of this type are encoded images: bytes, or a struct with a field of bytes."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index(_STRUCT_FIELD)
        if index < 0:
            return False
        cells = kind.field(index).type
        # A column of nothing has no type: all images are named by their paths.
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
    """The cells that were read last: threads that share a file ask a little out of order."""

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
    """Reads the cells of one column of a file; quick when they are asked for in order.

    Rows are decoded forward, a few at a time, from the start of their row group; a row that lies
    far behind the last one costs a new start. Threads may share it.

    Args:
        location: Of the Parquet file.
        column: Of bytes, or of structs with a field `bytes`.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The storage does not give it.
        InputError: It is no Parquet file, or has no such column.
    """

    def __init__(self, location: str, column: str) -> None:
        self._file = open_parquet(location)
        schema = self._file.schema_arrow
        index = schema.get_field_index(column)
        if index < 0 or not is_image_type(schema.field(index).type):
            raise InputError(f"{location} has no column of images named {column!r}")
        nested = pa.types.is_struct(schema.field(index).type)
        self._leaf = f"{column}.{_STRUCT_FIELD}" if nested else column
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
            BadImageError: `missing`, there is no such row; `unreadable`, it is damaged.
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
        first_bad, fault = self._damaged.get(group, (row + 1, ""))
        if row >= first_bad:
            raise BadImageError(Reason.UNREADABLE, f"the table is damaged: {fault}")
        if group != self._group or row < self._next_row:
            self._group, self._next_row = group, self._starts[group]
            self._batches = self._read_group(group)
        try:
            for batch in self._batches:
                self._next_row = batch.first_row + len(batch.cells)
                self._window.add(batch)
                if row in batch:
                    return batch
            fault = "a row group is shorter than it says"
        except StorageUnavailableError:
            self._group = -1
            raise
        except (pa.ArrowException, OSError) as error:
            fault = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Asking again for each of the rows that follow would decode the group again each time.
        self._damaged[group], self._group = (self._next_row, fault), -1
        raise BadImageError(Reason.UNREADABLE, f"the table is damaged: {fault}")

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
        """As many rows as make a few megabytes, going by the group's average."""
        metadata = self._file.metadata.row_group(group)
        chunk = next(
            metadata.column(index)
            for index in range(metadata.num_columns)
            if metadata.column(index).path_in_schema == self._leaf
        )
        average = max(1, chunk.total_uncompressed_size // max(1, metadata.num_rows))
        return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // average)))


# --- cells that only name an image ---------------------------------------------------------------


def may_contain_paths(location: str, column: str, kind: pa.DataType) -> bool:
    """Whether some cells may have a path and no bytes, as Hugging Face writes them.

    Statistics tell, so that no cell is read; where there are none, the first few cells do.

    Args:
        location: Of the Parquet file.
        column: Of images.
        kind: Of the column.

    Raises:
        InputError: The file cannot be read.
    """
    if not pa.types.is_struct(kind) or kind.get_field_index(_PATH_FIELD) < 0:
        return False
    leaf = f"{column}.{_STRUCT_FIELD}"
    with _readable(location), open_parquet(location) as file:
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        counts = [_num_empty(group, leaf) for group in groups]
    if None not in counts:
        return any(counts)
    _, paths = next(read_paths(location, column, ()), (None, []))
    return any(paths)


def _num_empty(group: Any, leaf: str) -> int | None:
    chunks = map(group.column, range(group.num_columns))
    statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf)
    return statistics.null_count if statistics and statistics.has_null_count else None


def read_paths(
    location: str, column: str, others: Sequence[str]
) -> Iterator[tuple[pa.Table, list[str | None]]]:
    """Yield some columns of a table, with the path of each row whose image has no bytes.

    Args:
        location: Of the Parquet file.
        column: Of structs of bytes and path.
        others: Columns to yield, a few rows at a time; the bytes are read along with them.

    Raises:
        InputError: The file cannot be read, or is damaged.
    """
    leaves = [f"{column}.{field}" for field in (_STRUCT_FIELD, _PATH_FIELD)]
    with _readable(location), open_parquet(location) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=[*leaves, *others], use_threads=False)
        for batch in batches:
            cells = batch.column(column)
            empty = pc.struct_field(cells, _STRUCT_FIELD).is_null()
            paths = pc.if_else(empty, pc.struct_field(cells, _PATH_FIELD), None)
            yield pa.Table.from_batches([batch]).select(others), paths.to_pylist()


@contextlib.contextmanager
def _readable(location: str) -> Iterator[None]:
    """Say in one sentence that a table cannot be read while it is listed."""
    try:
        yield
    except pa.ArrowException as error:
        fault = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is damaged ({fault}); copy it again.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
