"""Workers that note each shard, wait for a request to yield, or do nothing but begin shards."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.worker import ShardWorker
from eagleray.packing.pipeline import pack_or_hand_back
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext
from eagleray.sharded.attempts import ShardJournal

NOTES = "notes"
"""Name of the file in a job's output."""

_RESUMED = "resumed"
_SECONDS_TO_BE_ASKED = 180.0


class NotingWorker(ShardWorker):
    """A worker that notes each shard that it finishes, in a file beside the job's output.

    In the first turn of a job it finishes its second shard only when the job is asked to yield, so
    that the request arrives before the job ends.
    """

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        import ray

        super().__init__(context, journal)
        self._output = ray.get(context).output
        self._is_first = True

    def work(self, shard: int) -> ShardSummary:
        done = super().work(shard)
        if not self._is_first:
            wait_until_asked_to_yield(self._output, self._journal)
        self._is_first = False
        note(Path(f"{self._output}.{NOTES}"), f"{shard}")
        return done


def pack_and_wait(context: PackContext, journal: ShardJournal, shard: int) -> PackedShard | None:
    """Pack a shard; in the first turn all but the first one wait until the job is to yield."""
    packed = pack_or_hand_back(context, journal, shard)
    if shard and packed is not None:
        wait_until_asked_to_yield(context.output, journal)
    return packed


def wait_until_asked_to_yield(output: str, journal: ShardJournal) -> None:
    """Wait in the first turn of a job until its workers are to hand back shards.

    Raises:
        TimeoutError: If they never are.
    """
    deadline = time.monotonic() + _SECONDS_TO_BE_ASKED
    while not (journal.hands_back or Path(f"{output}.{_RESUMED}").exists()):
        if time.monotonic() > deadline:
            raise TimeoutError("The job was not asked to yield.")
        time.sleep(0.02)


def note_resumed(output: str) -> None:
    """Have workers of later turns wait for nothing."""
    Path(f"{output}.{_RESUMED}").touch()


class IdleWorker(ShardWorker):
    """A worker that begins shards and predicts nothing: what is left is the way to it and back."""

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        self._journal = journal

    def work(self, shard: int) -> ShardSummary:
        self._journal.begin(shard)
        return ShardSummary(shard, 1, 0, time.time(), time.time())


def note(file: Path, line: str) -> None:
    """Append a line, which stays whole beside those of other processes."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(file: Path) -> list[str]:
    """Return all lines that were noted."""
    return file.read_text().splitlines() if file.exists() else []
