"""Reads CSV and TSV files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv

from eagleray.core.errors import InputError
from eagleray.io.delimited import describe_delimited, not_utf8
from eagleray.io.table_file import BATCH_ROWS, open_text, read_start

__all__ = ["CsvTable", "TsvTable"]

_BLOCK_BYTES = 16 * 2**20  # read at once from a CSV; no row may be longer


class CsvTable:
    """A CSV with a header in UTF-8; every column stays the text that was written."""

    separator = ","

    def __init__(self, location: str) -> None:
        self.location = location
        start, whole = read_start(location)
        form = describe_delimited(start, location, separator=self.separator, whole=whole)
        self._read_options = pyarrow.csv.ReadOptions(
            block_size=_BLOCK_BYTES, use_threads=False, skip_rows=form.skip_rows
        )
        self._parse_options = pyarrow.csv.ParseOptions(
            delimiter=form.separator, newlines_in_values=True
        )
        self.notes: tuple[str, ...] = () if form.note is None else (form.note,)
        with self._open(pyarrow.csv.ConvertOptions()) as reader:
            self.schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
            has_rows = any(batch.num_rows for batch in reader)
        self.num_rows: int | None = None if has_rows else 0

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns, as `TableFile` says."""
        options = pyarrow.csv.ConvertOptions(
            column_types=self.schema, strings_can_be_null=False, include_columns=list(columns)
        )
        with self._open(options) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])

    @contextlib.contextmanager
    def _open(
        self, options: pyarrow.csv.ConvertOptions
    ) -> Iterator[pyarrow.csv.CSVStreamingReader]:
        try:
            with open_text(self.location) as file:
                yield pyarrow.csv.open_csv(file, self._read_options, self._parse_options, options)
        except pa.ArrowInvalid as error:
            fault = str(error).splitlines()[0].rstrip(".")
            if "Empty CSV" in fault:  # a single word, and not even the end of a line
                raise InputError(f"{self.location} has a header and no rows.") from None
            if "invalid UTF8" in fault:
                raise InputError(self._first_fault()) from None
            raise InputError(
                f"{self.location} cannot be read as a CSV ({fault}); every line must have as many "
                "values as the header has names."
            ) from None

    def _first_fault(self) -> str:
        """Return the sentence for the first line that is not UTF-8."""
        with open_text(self.location) as file:
            for number, line in enumerate(file):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return not_utf8(line, error.start, self.location, lines_before=number)
        return f"{self.location} is not in UTF-8; save it in that encoding."


class TsvTable(CsvTable):
    """The same with tabs between columns."""

    separator = "\t"
