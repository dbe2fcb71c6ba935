"""Defines an open table, and opens the files of tables with errors in one sentence."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.delimited import SAMPLE_BYTES

__all__ = ["BATCH_ROWS", "GZIP", "TableFile", "converted_errors", "open_text", "read_start"]

BATCH_ROWS = 8192
"""Maximum number of rows that are read at once."""

GZIP = ".gz"


class TableFile(Protocol):
    """An open table.

    Attributes:
        location: Location of the file.
        schema: Columns of the table.
        num_rows: Number of rows; None if there are rows that only reading them all would count.
        notes: Clauses for the user on what was decided in reading it.
    """

    location: str
    schema: pa.Schema
    num_rows: int | None
    notes: tuple[str, ...]

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some of its columns, in the order asked for, a few thousand rows at a time.

        Raises:
            InputError: If the file is damaged farther on.
        """
        ...


@contextlib.contextmanager
def converted_errors(location: str) -> Iterator[None]:
    """Convert errors of reading a file that the user named into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"Cannot read {location}: there is no such file.") from None
    except gzip.BadGzipFile:
        raise InputError(
            f"{location} is not compressed with gzip, or is damaged; if it is not, take {GZIP!r} "
            "off its name."
        ) from None
    except (EOFError, zlib.error):
        raise InputError(f"{location} ends early or is damaged; copy it again.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None


@contextlib.contextmanager
def open_text(location: str) -> Iterator[BinaryIO]:
    """Open a text as bytes, unpacked if its name ends in `.gz`.

    Raises:
        InputError: If it cannot be read.
    """
    with converted_errors(location), storage.open_seekable(location) as file:
        if not location.lower().endswith(GZIP):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("BinaryIO", unpacked)


def read_start(location: str) -> tuple[bytes, bool]:
    """Return the first bytes of a text, and whether they are all."""
    with open_text(location) as file:
        start = file.read(SAMPLE_BYTES + 1)
    return start[:SAMPLE_BYTES], len(start) <= SAMPLE_BYTES
