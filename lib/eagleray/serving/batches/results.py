"""The results of a batch: its files and counts, and its rows as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eagleray.batch.earlier import read_results
from eagleray.io import storage
from eagleray.io.arrow_files import encode_table
from eagleray.sharded.commit import Commit

__all__ = ["describe_results", "json_lines"]

_ROWS_PER_CHUNK = 4096


def describe_results(output: str, committed: Commit) -> dict[str, Any]:
    """Describe the results of an output."""
    return {
        "output": output,
        "format": committed.format,
        "rows": committed.num_rows,
        "ok": committed.num_rows - committed.num_failed,
        "failed": committed.num_failed,
        "reasons": dict(committed.reasons.most_common()),
        "files": [
            {
                "location": storage.join(output, file.name),
                "rows": file.num_rows,
                "failed": file.num_failed,
                "bytes": file.num_bytes,
                "sha256": file.sha256,
            }
            for file in committed.files
        ],
    }


def json_lines(output: str, committed: Commit, offset: int, limit: int) -> Iterator[bytes]:
    """Yield some rows of an output, a few thousand lines at a time.

    Args:
        output: Location of the output.
        committed: Commit of the output.
        offset: Number of the first row.
        limit: Maximum number of rows.
    """
    stop = min(offset + limit, committed.num_rows)
    if offset >= stop:
        return
    files = iter(file for file in committed.files if file.first_row + file.num_rows > offset)
    for table, file in zip(read_results(output, first_row=offset), files, strict=True):
        start = max(0, offset - file.first_row)
        wanted = table.slice(start, max(0, stop - file.first_row - start))
        for begin in range(0, wanted.num_rows, _ROWS_PER_CHUNK):
            yield encode_table(wanted.slice(begin, _ROWS_PER_CHUNK), "jsonl")
        if file.first_row + file.num_rows >= stop:
            return
