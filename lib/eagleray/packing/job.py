"""A packing job from its request to its committed output; `jobs/pack.py` gives it a command line.

    request -> open_pack    checks everything, lists the inputs, claims the plan (or finds it)
            -> run_pack     packs the shards that are not done, checks, commits
            -> PackSummary  what it came to

Both may be interrupted at any point and called again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.job_state import JobState
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.core.yielding import Turn, YieldSignal
from eagleray.io import storage
from eagleray.packing.collect import collect
from eagleray.packing.pipeline import pack_shards
from eagleray.packing.plan import PackPlan
from eagleray.packing.receipt import PackedShard
from eagleray.packing.sizes import ExpectedSizes
from eagleray.packing.spec import PackSpec
from eagleray.packing.worker import PackContext
from eagleray.sharded.attempts import Shards
from eagleray.sharded.commit import Commit, publish, read_commit, tidy_up
from eagleray.sharded.history import record_job
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ShardLimits
from eagleray.sharded.plan import read_plan, require_same_work
from eagleray.sharded.prepare import make_plan, require_free
from eagleray.sharded.run import JobRun
from eagleray.sources import InputSpec, open_inputs

__all__ = ["PackJob", "PackShards", "PackSummary", "finish_pack", "open_pack", "run_pack"]

_MAX_ROWS_PER_FILE = 50_000

PackShards = Callable[[Shards, PackContext, Cluster, Turn], Iterator[PackedShard]]
"""Packs shards and yields each as it is done, in any order."""


@dataclass(frozen=True)
class PackJob:
    """An opened job: the inputs are listed.

    Attributes:
        request: The request.
        layout: The output.
        plan: Plan of the job, made now or by an earlier run.
        committed: Commit of an earlier run, if there is one.
    """

    request: PackSpec
    layout: OutputLayout
    plan: PackPlan
    committed: Commit | None

    @property
    def context(self) -> PackContext:
        """What the workers need to know."""
        return PackContext(
            output=self.layout.location,
            manifest_folder=self.layout.manifest(self.plan.manifest),
            num_shards=self.plan.num_shards,
            file_format=self.plan.work.format,
            file_bytes=self.plan.work.file_bytes,
            max_bytes=self.plan.work.max_bytes,
            urls=self.request.urls,
            s3=self.request.s3,
            path_policy=self.request.path_policy,
        )


@dataclass(frozen=True)
class PackSummary:
    """What a job came to.

    Attributes:
        committed: Commit of the job.
        output: Location of the output.
        seconds: Duration of this run's packing.
        packed_here: Number of images that this run packed.
        bytes_here: Number of their bytes.
        committed_here: Whether this run committed, and no run before or beside it.
    """

    committed: Commit
    output: str
    seconds: float = 0.0
    packed_here: int = 0
    bytes_here: int = 0
    committed_here: bool = False

    @property
    def reasons(self) -> dict[str, int]:
        """Number of failures for each reason code."""
        return dict(self.committed.reasons.most_common())

    @property
    def megabytes(self) -> float:
        """All packed images, in 10**6 bytes."""
        return (self.committed.image_bytes or 0) / 1e6

    @property
    def images_per_second(self) -> float:
        """Throughput of this run."""
        return self.packed_here / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """Throughput of this run, in 10**6 bytes of images."""
        return self.bytes_here / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def failures(self) -> str | None:
        """Location of the table of failed inputs; None without any."""
        failures = self.committed.failures
        return None if failures is None else storage.join(self.output, failures.name)

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        committed = self.committed
        return {
            "job": committed.job_id,
            "images": committed.num_rows,
            "packed": committed.num_ok,
            "failed": committed.num_failed,
            "reasons": self.reasons,
            "skipped": committed.skipped,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "megabytes": round(self.megabytes, 3),
            "megabytes_per_second": round(self.megabytes_per_second, 2),
            "output": self.output,
            "files": [storage.join(self.output, file.name) for file in committed.files],
            "failures": self.failures,
            "committed_here": self.committed_here,
        }


def open_pack(request: PackSpec, settings: Settings, reporter: ProgressReporter) -> PackJob:
    """Check everything that can be wrong before expensive work starts, and list the inputs.

    An output that holds this very job is opened again: its inputs are those listed then.

    Raises:
        UserError: If something is wrong; the message says how to fix it.
    """
    storage.use_s3(request.s3)
    work = request.work()
    layout = OutputLayout(request.output)
    plan = read_plan(layout, PackPlan)
    if plan is None:
        require_free(layout)
        listing = open_inputs(InputSpec(request.inputs, request.column, request.path_policy))
        limits = ShardLimits(
            max_rows=_MAX_ROWS_PER_FILE,
            max_bytes=work.file_bytes,
            next_rows=lambda _: _MAX_ROWS_PER_FILE,
            bytes_of=ExpectedSizes(),
        )
        build = functools.partial(PackPlan, work=work)
        plan = make_plan(layout, listing, build, reporter, limits=limits)
    require_same_work(layout, plan, work)
    record_job(settings, plan, layout.location, request.s3)
    return PackJob(request, layout, plan, read_commit(layout))


def run_pack(
    job: PackJob,
    cluster: Callable[[], Cluster],
    reporter: ProgressReporter,
    *,
    yield_signal: YieldSignal | None = None,
    pack_shards: PackShards = pack_shards,
) -> PackSummary:
    """Pack every shard that is not done, and commit.

    Args:
        job: An opened job.
        cluster: Returns the cluster; not called if every shard is done.
        reporter: Receives the progress.
        yield_signal: Asks the job to yield its workers; None if it is never asked.
        pack_shards: Packs shards.

    Raises:
        JobFailedError: If the job is cancelled, too many inputs fail, or the workers stop; what is
            done is kept.
    """
    if read_commit(job.layout) is not None:  # by another run, since this one opened the job
        return finish_pack(job)

    started = time.monotonic()

    def work(pending: Shards, turn: Turn) -> Iterator[PackedShard]:
        nonlocal started
        workers = cluster()
        started = time.monotonic()
        run.channel.hold(cores=workers.num_cpus, gpus=0)
        return pack_shards(pending, job.context, workers, turn)

    limit = job.request.failure_limit
    run = JobRun(job.layout, job.plan, limit, reporter, yield_signal or YieldSignal())
    with run.monitored() as monitor:
        done = list(run.finish_shards("Packing", work, monitor))
        seconds = time.monotonic() - started if done else 0.0
        monitor.enter(JobState.RUNNING, "checking the packed files")
        commit, committed_here = collect(job.layout, job.plan), False
        if commit is not None:
            run.check_failures(commit.num_failed)
            _, committed_here = publish(job.layout, commit)
        summary = finish_pack(job)
    return replace(
        summary,
        seconds=seconds,
        packed_here=sum(packed.num_packed for packed in done),
        bytes_here=sum(packed.image_bytes for packed in done),
        committed_here=committed_here,
    )


def finish_pack(job: PackJob) -> PackSummary:
    """Repeat what follows the commit of a job that an earlier run has committed."""
    committed = read_commit(job.layout)
    assert committed is not None
    tidy_up(job.layout, job.plan)
    return PackSummary(committed, job.layout.location)
