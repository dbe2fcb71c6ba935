"""A whole job in one process: the driver of a prediction job, with a worker of the real kind in it.

Everything is the product's own but the way from one to the other: where Ray would carry a shard's
number to an actor, it is passed by a call. So a process without Ray makes every call of the storage
that a job makes, always in the same order, and can be killed at each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from eagleray.batch.context import JobContext
from eagleray.batch.pipeline import WorkerPool
from eagleray.batch.run import RunShards, finish_job, run_job
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.spec import PredictSpec
from eagleray.batch.worker import SHARD_COLUMN, ShardWorker
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.sharded.attempts import ShardJournal
from eagleray.sharded.layout import OutputLayout
from tests.support.job_folder import open_predict
from tests.support.reporting import RecordingReporter

ROWS_PER_FILE = 32


@dataclass(frozen=True)
class Ending:
    """How a driver ended.

    Attributes:
        committed_here: Whether it made the commit.
        was_complete: Whether there was one when it started.
        job_id: Identifier of its job.
        notes: Notes that it reported.
    """

    committed_here: bool
    was_complete: bool
    job_id: str
    notes: tuple[str, ...] = ()


class _NoJournal(ShardJournal):
    hands_back = False

    def begin(self, shard: int) -> int:
        return 0


class _InProcessWorker(ShardWorker):
    """A worker in the driver's process, which gets the context itself and not a reference."""

    def __init__(self, context: JobContext) -> None:
        import ray

        ray.get = lambda reference: reference
        super().__init__(context, _NoJournal("alone"))


def run_shards_in_process(
    pending: Sequence[int], context: JobContext, _: WorkerPool, **__: object
) -> Iterator[ShardSummary]:
    """Predict shards in this process."""
    worker = _InProcessWorker(context)
    for number in pending:
        done = worker(pa.table({SHARD_COLUMN: pa.array([number], pa.int64())}))
        yield ShardSummary(**done.to_pylist()[0])


def drive(
    request: PredictSpec,
    *,
    rows_per_file: int | None = ROWS_PER_FILE,
    run_shards: RunShards = run_shards_in_process,
) -> Ending:
    """Do what `eagleray.jobs.predict` does. Changes this process: call it in a child.

    Args:
        request: The request, as a user would make it.
        rows_per_file: Rows of a result file; None leaves them to the job, which makes one file.
        run_shards: Predicts shards.
    """
    reporter = RecordingReporter()
    job = open_predict(request, Settings(), reporter, rows_per_file=rows_per_file)
    if job.committed is not None:
        summary = finish_job(job)
    else:
        summary = run_job(
            job,
            lambda: Cluster(num_cpus=1, num_gpus=0, embedded=True),
            reporter,
            run_shards=run_shards,
            draw_plots=lambda *_: [],  # drawing is most of the time of so small a job
        )
    was_complete = job.committed is not None
    return Ending(summary.committed_here, was_complete, summary.job_id, tuple(reporter.notes))


def copy_shards(source: Path, request: PredictSpec) -> None:
    """Open a job, and give it the shard results of a folder that hold the same inputs."""
    open_predict(request, Settings(), RecordingReporter(), rows_per_file=ROWS_PER_FILE)
    layout = OutputLayout(request.output)
    for file in source.iterdir():
        storage.put_atomic(storage.join(layout.shards, file.name), file.read_bytes())


def keep_shards(request: PredictSpec, folder: Path) -> None:
    """Run a job, and copy its shard results into a folder before it commits."""

    def run_and_keep(
        pending: Sequence[int], context: JobContext, worker_pool: WorkerPool, **__: object
    ) -> Iterator[ShardSummary]:
        yield from run_shards_in_process(pending, context, worker_pool)
        folder.mkdir()
        for file in storage.list_files(OutputLayout(request.output).shards):
            (folder / storage.name_of(file.uri)).write_bytes(storage.read_bytes(file.uri))

    drive(request, run_shards=run_and_keep)
