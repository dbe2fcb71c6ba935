"""Opens and reads Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.file_kinds import NUM_SNIFFED_BYTES, describe_file_kind, is_text
from eagleray.io.table_file import BATCH_ROWS, converted_errors

__all__ = ["ParquetTable", "open_parquet"]

_COLUMN_BUFFER = 2**20


def open_parquet(location: str) -> pq.ParquetFile:
    """Open a Parquet file to be read forward, in little memory.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If the storage cannot read it.
        InputError: If it is not a Parquet file, or is damaged.
    """
    file = storage.open_seekable(location)
    try:
        return pq.ParquetFile(file, buffer_size=_COLUMN_BUFFER, pre_buffer=False)
    except pa.ArrowException as error:
        file.seek(0)
        start = file.read(NUM_SNIFFED_BYTES)
        kind = describe_file_kind(start) or ("a text" if is_text(start) else None)
        if kind not in (None, "a Parquet file"):
            raise InputError(f"{location} is {kind}, and no Parquet file; rename it.") from error
        fault = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{location} is not a whole Parquet file ({fault}).") from error


class ParquetTable:
    """A Parquet file; types are kept, and only requested columns are read."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.notes: tuple[str, ...] = ()
        with converted_errors(location), open_parquet(location) as file:
            self.schema = file.schema_arrow.remove_metadata()
            self.num_rows: int | None = file.metadata.num_rows

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns, as `TableFile` says."""
        wanted = list(columns)
        with converted_errors(self.location), open_parquet(self.location) as file:
            try:
                for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(wanted)
            except pa.ArrowException as error:
                fault = str(error).splitlines()[0].rstrip(".")
                raise InputError(f"{self.location} is damaged ({fault}); copy it again.") from None
