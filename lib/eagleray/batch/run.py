"""Runs an opened prediction job: predicts what is left, merges, draws the page, commits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from eagleray.batch.earlier import read_results
from eagleray.batch.job import Job
from eagleray.batch.merge import Draft, merge
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.report import (
    REPORT_COLUMNS,
    DrawPlots,
    ReportCollector,
    Totals,
    draw_plots,
    render_report,
)
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.timeline import engines, put_timeline, read_timeline, seconds_of_work
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.job_state import JobState
from eagleray.core.ray_session import Cluster
from eagleray.core.yielding import Turn, YieldSignal
from eagleray.io import storage
from eagleray.sharded.attempts import Shards
from eagleray.sharded.commit import publish, read_commit, tidy_up
from eagleray.sharded.progress import JobMonitor
from eagleray.sharded.run import JobRun
from eagleray.tasks.segmentation.pixel_task import SHARE_PREFIX

__all__ = ["JobSummary", "RunShards", "finish_job", "run_job"]

RunShards = Callable[..., Iterator[ShardSummary]]
"""Does what `run_shards` does; tests do it without Ray."""


@dataclass(frozen=True)
class JobSummary:
    """What a job came to.

    Attributes:
        job_id: Identifier of the job.
        totals: Counts and times of the job.
        seconds: Duration of this run.
        first_result_seconds: Time until its first shard was done; None if there was nothing to do.
        reasons: Number of failures for each reason code.
        labels: Number of images for each label.
        files: Locations of the result files.
        report: Location of the page.
        model: Reference of the model, as the user named it.
        output: Location of the output.
        committed_here: Whether this run committed, and no run before or beside it.
        remarks: Sentences about decisions made while the inputs were listed.
        skipped: Number of skipped files, by kind.
        engines: Description of what ran the network, for each kind of machine.
        sql_rows: Number of rows put into the SQL table; None without one.
    """

    job_id: str
    totals: Totals
    seconds: float
    first_result_seconds: float | None
    reasons: dict[str, int]
    labels: dict[str, int]
    files: list[str]
    report: str
    model: str
    output: str
    committed_here: bool
    remarks: tuple[str, ...]
    skipped: dict[str, int]
    engines: tuple[str, ...]
    sql_rows: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        totals, first = self.totals, self.first_result_seconds
        return {
            "job": self.job_id,
            "images": totals.num_rows,
            "ok": totals.num_ok,
            "failed": totals.num_failed,
            "reasons": self.reasons,
            "labels": self.labels,
            "skipped": self.skipped,
            "remarks": self.remarks,
            "seconds": round(self.seconds, 3),
            "first_result_seconds": None if first is None else round(first, 3),
            "images_per_second": round(totals.images_per_second, 2),
            "model": self.model,
            "output": self.output,
            "files": self.files,
            "report": self.report,
            "committed_here": self.committed_here,
            "engines": self.engines,
            "sql_rows": self.sql_rows,
        }


def run_job(
    job: Job,
    cluster: Callable[[], Cluster],
    reporter: ProgressReporter,
    *,
    yield_signal: YieldSignal | None = None,
    run_shards: RunShards = run_shards,
    draw_plots: DrawPlots = draw_plots,
) -> JobSummary:
    """Predict every shard that has no result, merge, report and commit.

    Args:
        job: An opened job.
        cluster: Returns the cluster; not called if every shard has its result.
        reporter: Receives the progress.
        yield_signal: Asks the job to yield its workers; None if it is never asked.
        run_shards: Predicts shards.
        draw_plots: Draws the plots of the page.

    Raises:
        JobFailedError: If the job is cancelled, too many inputs fail, or the workers stop; what is
            done is kept.
    """
    if read_commit(job.layout) is not None:  # by another run, since this one opened the job
        return finish_job(job)

    started = time.time()
    first: float | None = None
    run = JobRun(
        job.layout,
        job.plan,
        job.request.failure_limit,
        reporter,
        yield_signal or YieldSignal(),
    )
    with run.monitored() as monitor:

        def work(pending: Shards, turn: Turn) -> Iterator[ShardSummary]:
            now = cluster().counted_again()
            worker_pool = _choose_workers(job, now, len(pending))
            _say_what_is_awaited(worker_pool, now, reporter, monitor)
            held = {"gpus" if worker_pool.uses_gpu else "cores": worker_pool.num_workers}
            run.channel.hold(**{"cores": 0, "gpus": 0, **held})
            context = job.context(worker_pool)
            return run_shards(_in_order(pending, worker_pool), context, worker_pool, turn=turn)

        for shard in run.finish_shards("Predicting", work, monitor):
            if first is None:
                first = shard.finished - started
                monitor.enter(JobState.RUNNING)  # and waits no longer
        monitor.enter(JobState.RUNNING, "writing the result files")
        collector, committed_here = ReportCollector(), False
        draft = merge(job.layout, job.plan, on_shard=collector.add)
        if draft is not None:
            run.check_failures(collector.reasons.total())
            _put_report(job, draft, collector, draw_plots)
            _, committed_here = publish(job.layout, draft.commit(job.plan))
        tidy_up(job.layout, job.plan)
        timeline = read_timeline(job.layout) if draft is None else draft.timeline
        return _summarise(
            job,
            _collect(job) if draft is None else collector,
            timeline,
            started=started,
            first=first,
            committed_here=committed_here,
        )


def finish_job(job: Job) -> JobSummary:
    """Repeat what follows the commit of a job that an earlier run has committed."""
    started = time.time()
    tidy_up(job.layout, job.plan)
    return _summarise(job, _collect(job), read_timeline(job.layout), started=started)


def _choose_workers(job: Job, cluster: Cluster, num_shards: int) -> WorkerPool:
    request = job.request
    return WorkerPool.choose(
        cluster,
        num_shards,
        wanted=request.worker_range,
        split=request.decodes_apart,
        device=request.device,
    )


def _say_what_is_awaited(
    worker_pool: WorkerPool, cluster: Cluster, reporter: ProgressReporter, monitor: JobMonitor
) -> None:
    """Say which workers wait for nodes, until the first shard is done."""
    there = cluster.num_gpus if worker_pool.uses_gpu else cluster.num_cpus
    if worker_pool.num_workers > there and worker_pool.is_asked:
        unit = "GPU" if worker_pool.uses_gpu else "core"
        waits = (
            f"waiting for {worker_pool.num_workers - there} of {worker_pool.num_workers} workers, "
            f"one on each {unit}: the cluster grows"
        )
        reporter.note(waits)
        monitor.enter(JobState.RUNNING, waits)


def _in_order(pending: Shards, worker_pool: WorkerPool) -> Shards:
    """Order shards, which grow with their number.

    Each worker begins with a small one, so that results appear at once; then come the largest, and
    at the end small ones again, so that workers finish together.
    """
    first, others = np.split(pending, [worker_pool.num_workers])
    return np.concatenate([first, others[::-1]])


def _collect(job: Job) -> ReportCollector:
    """Read the committed results of a job again."""
    collector = ReportCollector()
    known = job.result_schema.names
    columns = [name for name in known if name in REPORT_COLUMNS or name.startswith(SHARE_PREFIX)]
    for rows in read_results(job.layout.location, columns=columns):
        collector.add(rows)
    return collector


def _put_report(job: Job, draft: Draft, collector: ReportCollector, draw_plots: DrawPlots) -> None:
    plan = {
        **job.plan.describe(),
        "engine": "; ".join(engines(draft.timeline)),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    page = render_report(
        collector,
        _totals(job, draft.timeline, collector),
        draft.timeline,
        plan,
        model_name=job.request.model,
        remarks=job.plan.remarks,
        draw_plots=draw_plots,
    )
    storage.put_atomic(job.layout.report, page)
    put_timeline(job.layout, draft.timeline)


def _totals(job: Job, timeline: Sequence[ShardSummary], collector: ReportCollector) -> Totals:
    num_failed = collector.reasons.total()
    return Totals(
        num_rows=job.plan.num_rows,
        num_ok=job.plan.num_rows - num_failed,
        num_failed=num_failed,
        seconds=seconds_of_work(timeline),
    )


def _summarise(
    job: Job,
    collector: ReportCollector,
    timeline: Sequence[ShardSummary],
    *,
    started: float,
    first: float | None = None,
    committed_here: bool = False,
) -> JobSummary:
    """Describe a committed job, and put its rows into the SQL table if there is one.

    Args:
        job: The job.
        collector: Holds all its results.
        timeline: Summary of every shard.
        started: Start of this run, in seconds since the epoch.
        first: Seconds until the first shard was done.
        committed_here: Whether this run committed.
    """
    committed = read_commit(job.layout)
    assert committed is not None
    sql_rows = None
    if job.request.sql_target is not None:
        sql_rows = job.request.sql_target.load(job.plan.job_id, read_results(job.layout.location))
    return JobSummary(
        job_id=job.plan.job_id,
        totals=_totals(job, timeline, collector),
        seconds=time.time() - started,
        first_result_seconds=first,
        reasons=dict(collector.reasons.most_common()),
        labels=dict(collector.labels.most_common()),
        files=[storage.join(job.layout.location, file.name) for file in committed.files],
        report=job.layout.report,
        model=job.request.model,
        output=job.layout.location,
        committed_here=committed_here,
        remarks=job.plan.remarks,
        skipped=job.plan.skipped,
        engines=engines(timeline),
        sql_rows=sql_rows,
    )
