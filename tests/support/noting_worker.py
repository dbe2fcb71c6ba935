"""Workers that note each shard that they do, one line for each, and may do nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.worker import SHARD_COLUMN, ShardWorker
from eagleray.sharded.attempts import ShardJournal

NOTES = "notes"
"""Name of the file in a job's output."""


_SECONDS_A_SHARD = 0.3


class NotingWorker(ShardWorker):
    """A worker that notes each shard that it finishes, in a file beside the job's output.

    It takes its time for a shard, so that a request to yield arrives before the job ends.
    """

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        import ray

        super().__init__(context, journal)
        self._notes = Path(f"{ray.get(context).output}.{NOTES}")

    def __call__(self, block: pa.Table) -> pa.Table:
        done = super().__call__(block)
        time.sleep(_SECONDS_A_SHARD)
        if "num_ok" in done.column_names:
            note(self._notes, f"{done.column('shard')[0].as_py()}")
        return done


class IdleWorker(ShardWorker):
    """A worker that begins shards and predicts nothing: what is left is the way to it and back."""

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        self._journal = journal

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._journal.hands_back:
            return block
        shard = block.column(SHARD_COLUMN)[0].as_py()
        self._journal.begin(shard)
        return ShardSummary(shard, 1, 0, time.time(), time.time()).as_block()


def note(file: Path, line: str) -> None:
    """Append a line, which stays whole beside those of other processes."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(file: Path) -> list[str]:
    """Return all lines that were noted."""
    return file.read_text().splitlines() if file.exists() else []
