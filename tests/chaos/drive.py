"""A whole job in one process: the driver of the batch job, with a worker of the real kind in it.

Everything is the product's own but for the way from one to the other: where Ray would carry a
shard's number to an actor, it is handed over by a call. So a process without Ray makes every call
of the storage that a job makes, always in the same order, and can be killed at each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import eagleray.batch.job
import eagleray.batch.report
from eagleray.batch.commit import publish
from eagleray.batch.job import finish_job, open_job, run_job
from eagleray.batch.pipeline import WorkerPool
from eagleray.batch.spec import PredictSpec
from eagleray.batch.worker import SHARD_COLUMN, JobContext, ShardSummary, ShardWorker
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.sharded.attempts import ShardJournal
from eagleray.sharded.layout import OutputLayout
from tests.support.reporting import RecordingReporter

ROWS_PER_PART = 32


@dataclass(frozen=True)
class Ending:
    """What a driver says at its end.

    Attributes:
        committed_here: That it made the commit.
        was_complete: That there was one when it came.
        job_id: Of the job that it worked on.
        notes: What it told its user on the way.
    """

    committed_here: bool
    was_complete: bool
    job_id: str
    notes: tuple[str, ...] = ()


def drive(request: PredictSpec, *, rows_per_part: int | None = ROWS_PER_PART) -> Ending:
    """Do what `eagleray.jobs.predict` does. Changes this process: call it in a child.

    Args:
        request: As a user would make it.
        rows_per_part: None leaves it to the job, which puts so few rows into one part.
    """
    _work_in_this_process()
    if rows_per_part is not None:
        setattr(eagleray.batch.job, "_rows_per_part", lambda *_: rows_per_part)  # noqa: B010
    reporter = RecordingReporter()
    job = open_job(request, Settings(), reporter)
    if job.committed is not None:
        summary = finish_job(job)
        was_complete = True
    else:
        summary = run_job(job, lambda: Cluster(num_cpus=1, num_gpus=0, embedded=True), reporter)
        was_complete = False
    return Ending(summary.committed_here, was_complete, summary.job_id, tuple(reporter.notes))


def _work_in_this_process() -> None:
    import ray

    ray.get = lambda reference: reference
    setattr(eagleray.batch.job, "run_shards", _run_shards)  # noqa: B010
    # Drawing is most of the time of so small a job.
    setattr(eagleray.batch.report, "_plots", lambda *_: [])  # noqa: B010


class _BegunNeverBefore(ShardJournal):
    def begin(self, shard: int) -> int:
        return 0


def _run_shards(
    pending: Iterable[int], context: JobContext, worker_pool: WorkerPool
) -> Iterator[ShardSummary]:
    worker = ShardWorker(context, _BegunNeverBefore("alone"))
    for number in pending:
        done = worker(pa.table({SHARD_COLUMN: pa.array([number], pa.int64())}))
        yield ShardSummary(**done.to_pylist()[0])


def copy_shards(source: Path, request: PredictSpec) -> None:
    """Open a job, and give it the shard results of a folder that hold the same inputs."""
    setattr(eagleray.batch.job, "_rows_per_part", lambda *_: ROWS_PER_PART)  # noqa: B010
    open_job(request, Settings(), RecordingReporter())
    layout = OutputLayout(request.output)
    for file in source.iterdir():
        storage.put_atomic(storage.join(layout.shards, file.name), file.read_bytes())


def keep_shards(request: PredictSpec, folder: Path) -> None:
    """Copy the shard results of a job into a folder when it is about to commit."""

    def keep_and_publish(layout: OutputLayout, *args: Any) -> Any:
        folder.mkdir()
        for file in storage.list_files(layout.shards):
            (folder / storage.name_of(file.uri)).write_bytes(storage.read_bytes(file.uri))
        return publish(layout, *args)

    setattr(eagleray.batch.job, "publish", keep_and_publish)  # noqa: B010
    drive(request)
