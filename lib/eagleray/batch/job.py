"""A batch job from its request to its committed output; `jobs/predict.py` gives it a command line.

    request -> open_job   checks everything, lists the inputs, claims the plan (or finds it)
            -> run_job    works on the shards that have no result, merges, commits
            -> JobSummary what became of it

Both may be interrupted at any point and called again.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.batch.commit import Commit, Draft, merge, publish, read_commit, tidy_up
from eagleray.batch.earlier import failures_of, leave_out_known, read_results
from eagleray.batch.history import record_job
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.plan import Plan, Work, claim_plan, new_id, read_plan, require_same_work
from eagleray.batch.progress import JobMonitor, read_progress
from eagleray.batch.report import (
    REPORT_COLUMNS,
    ReportCollector,
    Totals,
    render_report,
    seconds_of_work,
)
from eagleray.batch.results import result_schema, score_columns
from eagleray.batch.spec import PredictSpec
from eagleray.batch.worker import JobContext, ShardSummary, WorkerOptions
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError, JobFailedError
from eagleray.core.job_state import JobState
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.io.tables import texts_of
from eagleray.models.attributes import encode_columns, require_columns
from eagleray.registry.references import LoadedModel, load_model
from eagleray.sharded.claims import require_free
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader, write_manifest
from eagleray.sources import (
    LISTING_SCHEMA,
    InputSpec,
    Listing,
    open_inputs,
    require_readable,
    restrict_listing,
)

__all__ = [
    "Job",
    "JobSummary",
    "finish_job",
    "open_job",
    "require_writable",
    "run_job",
]

_BYTES_PER_PART = 128 * 2**20
_MAX_ROWS_PER_PART = 250_000
_MIN_ROWS_PER_PART = 1_000
_BYTES_OF_OURS = 250  # that a result row has in memory beside the user's columns and labels


@dataclass(frozen=True)
class Job:
    """A request with all that it needs: the model is verified, the inputs are listed.

    Attributes:
        request: What was asked for.
        model: Verified.
        layout: Of the output.
        plan: Of the job, made now or by an earlier run.
        committed: What an earlier run has finished.
        settings: Of this process.
    """

    request: PredictSpec
    model: LoadedModel
    layout: OutputLayout
    plan: Plan
    committed: Commit | None
    settings: Settings

    @property
    def manifest(self) -> ManifestReader:
        """The list of inputs."""
        return ManifestReader(self.layout.manifest(self.plan.manifest), self.plan.num_shards)

    def context(self, worker_pool: WorkerPool) -> JobContext:
        """Return what the workers need to know.

        Raises:
            InputError: The network is to be compiled, and would run on GPUs.
        """
        if worker_pool.uses_gpu and self.request.compile == "always":
            raise InputError("Networks are compiled for CPUs only; leave --compile out here.")
        options = WorkerOptions(
            top_k=self.request.top_k,
            device="cuda" if worker_pool.uses_gpu else "cpu",
            precision=self.request.precision,
            compile_mode=self.request.compile,
            num_threads=worker_pool.threads,
            shards_at_a_time=worker_pool.per_process,
            processes_per_node=worker_pool.per_node,
            seconds_per_image=self.request.image_timeout,
            expected_images=self.plan.num_rows // worker_pool.num_workers,
            cache_folder=str(self.settings.cache_folder),
            niceness=os.nice(0),
        )
        return JobContext(
            model=self.model,
            output=self.layout.location,
            manifest_folder=self.layout.manifest(self.plan.manifest),
            num_shards=self.plan.num_shards,
            options=options,
            urls=self.request.urls,
            s3=self.request.s3,
            path_policy=self.request.path_policy,
        )


@dataclass(frozen=True)
class JobSummary:
    """What became of a job.

    Attributes:
        job_id: Of the plan.
        totals: In figures.
        seconds: This run took.
        first_result_seconds: Until its first shard was done; None when there was nothing to do.
        reasons: Failures by reason.
        labels: Images by label.
        parts: Locations of the result files.
        report: Location of the page.
        model: As the user named it.
        output: Location.
        committed_here: Whether this run committed, and no run before or beside it.
        remarks: What was decided while the inputs were listed, in sentences.
        skipped: Files that were no inputs, by kind.
        engines: What ran the network and why, for a person: one, or one for each kind of machine.
        sql_rows: Put into the SQL table; None without one.
    """

    job_id: str
    totals: Totals
    seconds: float
    first_result_seconds: float | None
    reasons: dict[str, int]
    labels: dict[str, int]
    parts: list[str]
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
            "files": self.parts,
            "report": self.report,
            "committed_here": self.committed_here,
            "engines": self.engines,
            "sql_rows": self.sql_rows,
        }


# --- open ------------------------------------------------------------------------------------


def open_job(request: PredictSpec, settings: Settings, reporter: ProgressReporter) -> Job:
    """Check everything that can be wrong before expensive work starts, and list the inputs.

    An output that holds this very job is opened again: its inputs are those listed then.

    Raises:
        UserError: With what to mend.
    """
    storage.use_s3(request.s3)
    layout = OutputLayout(request.output)
    plan = read_plan(layout)
    if plan is None:
        require_free(layout)
        listing = _list_inputs(request)  # what is not there is seen before a model is loaded
    model = load_model(request.model, settings)
    package = model.package
    work = request.work(
        model_version=model.version,
        model_digest=package.digest,
        contract_digest=package.contract.digest,
    )
    if plan is None:
        listing = _with_attributes(listing, model)
        _require_sql(request, model, listing.user_schema)
        plan = _new_plan(layout, work, model, listing, reporter)
    else:
        require_same_work(layout, plan, work)
    record_job(settings, plan, layout.location, request.s3)
    job = Job(request, model, layout, plan, read_commit(layout), settings)
    if request.sql_target is not None:
        request.sql_target.require_ready(result_schema(model, job.manifest.schema))
    return job


def _list_inputs(request: PredictSpec) -> Listing:
    policy = request.path_policy
    require_readable([*request.inputs, *request.earlier], policy)
    if request.failed_only is not None:
        listing = restrict_listing(failures_of(request.failed_only), policy)
    else:
        listing = open_inputs(InputSpec(request.inputs, request.column, policy))
    if not request.since:
        return listing
    return replace(listing, tables=leave_out_known(listing.tables, request.since))


def _with_attributes(listing: Listing, model: LoadedModel) -> Listing:
    """See, while the inputs are listed, that the model finds its attributes in them.

    Raises:
        InputError: A column is not there; what it holds is looked at as the list is read.
    """
    attributes = model.package.attributes
    if not attributes:
        return listing
    names = listing.user_schema.names
    require_columns([attribute.name for attribute in attributes], names, "The list of inputs")

    def tables() -> Iterator[pa.Table]:
        for table in listing.tables:
            own = dict(zip(names, table.columns[len(LISTING_SCHEMA) :], strict=True))
            try:
                columns = {one.name: texts_of(own[one.name]) for one in attributes}
            except pa.ArrowException as error:
                raise InputError(
                    f"A column that the model takes cannot be read as text ({error})."
                ) from None
            encode_columns(attributes, columns, table.column(0).to_pylist())
            yield table

    return replace(listing, tables=tables())


def _require_sql(request: PredictSpec, model: LoadedModel, user_schema: pa.Schema) -> None:
    if request.sql_target is not None:
        fields = [field.with_name(f"user:{field.name}") for field in user_schema]
        request.sql_target.require_ready(result_schema(model, pa.schema(fields)))


def _new_plan(
    layout: OutputLayout,
    work: Work,
    model: LoadedModel,
    listing: Listing,
    reporter: ProgressReporter,
) -> Plan:
    name = f"manifest-{new_id()}"
    last_note = time.monotonic()

    def on_rows(num_rows: int) -> None:
        nonlocal last_note
        if time.monotonic() - last_note > 2:
            last_note = time.monotonic()
            reporter.note(f"{num_rows:,} images listed so far")

    was_there = storage.exists(layout.location)
    require_writable(layout)
    with _leaving_nothing(layout, name, was_there=was_there), _writing(layout):
        manifest = write_manifest(
            listing.tables, listing.user_schema, layout.manifest(name), on_rows=on_rows
        )
    package = model.package
    plan = Plan(
        job_id=new_id(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        work=work,
        task=package.task.name,
        architecture=package.manifest.architecture.name,
        contract=package.contract.to_json(),
        manifest=name,
        manifest_digest=manifest.digest,
        num_rows=manifest.num_rows,
        num_shards=manifest.num_shards,
        rows_per_part=_rows_per_part(listing.user_schema, len(score_columns(model))),
        remarks=listing.all_notes(),
        skipped=dict(listing.skipped.counts),
    )
    claimed = claim_plan(layout, plan)
    if claimed.manifest != name:
        layout.remove_folder(layout.manifest(name))
        reporter.note(f"Another run of this job was first; joining it as {claimed.job_id}.")
    return claimed


def require_writable(layout: OutputLayout) -> None:
    """Refuse an output that cannot be written.

    Raises:
        InputError: Whatever the storage raises.
    """
    with _writing(layout):
        probe = storage.join(layout.private, f"probe-{new_id()}")
        storage.put_atomic(probe, b"")
        storage.delete(probe)


@contextlib.contextmanager
def _leaving_nothing(layout: OutputLayout, manifest: str, *, was_there: bool) -> Iterator[None]:
    """Take a manifest away that could not be completed, and the folders made for it.

    Args:
        layout: Of the output.
        manifest: Its name.
        was_there: Whether the output's folder is the user's own.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, InputError):  # what is said is why it was not completed
            layout.remove_folder(layout.manifest(manifest))
            storage.remove_empty_folder(layout.private)
            if not was_there:
                storage.remove_empty_folder(layout.location)
        raise


@contextlib.contextmanager
def _writing(layout: OutputLayout) -> Iterator[None]:
    """Say in one sentence that an output cannot be written.

    Raises:
        InputError: Whatever the storage raises.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Output {layout.location} cannot be written ({error.strerror or error}); name another "
            "folder."
        ) from error


def _rows_per_part(user_schema: pa.Schema, num_scores: int) -> int:
    """Return how many rows make a part of a size that one process can hold."""
    bytes_per_row = _BYTES_OF_OURS + 64 * len(user_schema) + 4 * num_scores
    return max(_MIN_ROWS_PER_PART, min(_MAX_ROWS_PER_PART, _BYTES_PER_PART // bytes_per_row))


def finish_job(job: Job) -> JobSummary:
    """Repeat what follows the commit of a job that an earlier run has committed."""
    started = time.time()
    tidy_up(job.layout, job.plan)
    return _summarise(job, started=started)


# --- run -------------------------------------------------------------------------------------


def run_job(job: Job, cluster: Callable[[], Cluster], reporter: ProgressReporter) -> JobSummary:
    """Work on every shard that has no result, merge, report and commit.

    Args:
        job: Opened.
        cluster: Gives the cluster to work on; not asked when every shard has its result.
        reporter: Receives the progress.

    Raises:
        JobFailedError: It was cancelled, too many inputs failed, or the workers stopped; what is
            done is kept.
    """
    if read_commit(job.layout) is not None:  # by another run, since this one opened the job
        return finish_job(job)
    started = time.time()
    storage.delete(job.layout.cancel)
    monitor = _monitor(job)
    first: float | None = None
    with _told_how_it_ends(monitor), monitor.watching():
        for summary in _work(job, cluster, monitor, reporter):
            first = first or summary.finished - started
        monitor.enter(JobState.RUNNING, "writing the result files")
        summary_of_job = _commit(job, started=started, first=first)
        monitor.enter(JobState.SUCCEEDED)
    return summary_of_job


def _commit(job: Job, *, started: float, first: float | None) -> JobSummary:
    """Merge, draw the page, publish and tidy up."""
    collector = ReportCollector()
    draft = merge(job.layout, job.plan, on_shard=collector.add)
    committed_here = False
    if draft is not None:
        _put_report(job, draft, collector)
        _, committed_here = publish(job.layout, job.plan, draft)
    tidy_up(job.layout, job.plan)
    return _summarise(
        job,
        started=started,
        first=first,
        committed_here=committed_here,
        draft=draft,
        collector=collector if draft is not None else None,
    )


def _monitor(job: Job) -> JobMonitor:
    finished = job.layout.finished_shards()
    sizes = enumerate(job.manifest.shard_sizes())
    num_done = sum(size for number, size in sizes if number in finished)
    before = read_progress(job.layout)
    num_failed = before.num_failed if before and finished else 0
    return JobMonitor(job.layout, job.plan.job_id, job.plan.num_rows, num_done, num_failed)


@contextlib.contextmanager
def _told_how_it_ends(monitor: JobMonitor) -> Iterator[None]:
    """Leave word in the output when a run does not reach its end."""
    try:
        yield
    except KeyboardInterrupt:
        if not monitor.cancelled:
            monitor.enter(JobState.STOPPED, "interrupted")
            raise
        monitor.enter(JobState.CANCELLED)
        raise JobFailedError(
            f"Job {monitor.job_id} was cancelled after {monitor.num_done:,} images; they are kept: "
            "run the same command again to go on."
        ) from None
    except JobFailedError as error:
        monitor.enter(JobState.FAILED, str(error))
        raise
    except OSError as error:  # a full disk, or a storage that is gone for good
        monitor.enter(JobState.FAILED, str(error))
        raise JobFailedError(
            f"The storage failed ({error}). What is done is kept: run the same command again to go "
            "on."
        ) from error
    except BaseException as error:
        monitor.enter(JobState.FAILED, f"{type(error).__name__}: {error}")
        raise


def _work(
    job: Job, cluster: Callable[[], Cluster], monitor: JobMonitor, reporter: ProgressReporter
) -> Iterator[ShardSummary]:
    finished = job.layout.finished_shards()
    pending = [number for number in range(job.plan.num_shards) if number not in finished]
    if finished:
        reporter.note(
            f"Job {job.plan.job_id} goes on: {monitor.num_done:,} of {job.plan.num_rows:,} images "
            "have their results already."
        )
    _require_few_failures(job, monitor)
    if not pending:
        return
    worker_pool = WorkerPool.choose(
        cluster(),
        len(pending),
        wanted=job.request.worker_range,
        split=job.request.separate_decoding,
    )
    with reporter.progress("Predicting", job.plan.num_rows) as bar:
        bar.advance(monitor.num_done, failed=monitor.num_failed)
        for summary in run_shards(
            _in_turn(pending, worker_pool), job.context(worker_pool), worker_pool
        ):
            monitor.add(summary)
            bar.advance(summary.num_rows, failed=summary.num_failed)
            yield summary
            if monitor.cancelled:  # where signals are ignored, as behind `nohup`
                raise KeyboardInterrupt
            _require_few_failures(job, monitor)


def _in_turn(pending: list[int], worker_pool: WorkerPool) -> list[int]:
    """Order shards, which grow with their number.

    Each worker begins with a small one, so that results show at once; then come the largest, and
    at the end small ones again, so that workers finish together.
    """
    return pending[: worker_pool.num_workers] + pending[worker_pool.num_workers :][::-1]


def _require_few_failures(job: Job, monitor: JobMonitor) -> None:
    if not job.request.failure_limit.allows(monitor.num_failed, job.plan.num_rows):
        raise JobFailedError(
            f"{monitor.num_failed:,} of {monitor.num_done:,} images failed so far, more than "
            "--max-failures allows; what is done is kept. Look at it with `eagleray jobs show "
            f"{job.plan.job_id}`, and run the same command with a higher limit to go on."
        )


def _put_report(job: Job, draft: Draft, collector: ReportCollector) -> None:
    plan = {
        **job.plan.describe(),
        "engine": "; ".join(_engines(draft.timeline)),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    totals = _totals(job, draft.timeline, collector)
    page = render_report(
        collector,
        totals,
        draft.timeline,
        plan,
        model_name=job.request.model,
        remarks=job.plan.remarks,
    )
    storage.put_atomic(job.layout.report, page)
    names = ShardSummary.__slots__
    timeline = pa.table({name: [getattr(one, name) for one in draft.timeline] for name in names})
    buffer = io.BytesIO()
    pq.write_table(timeline, buffer)
    storage.put_atomic(job.layout.timeline, buffer.getvalue())


def _engines(timeline: Sequence[ShardSummary]) -> tuple[str, ...]:
    """Return the engines of all shards, each once."""
    return tuple(dict.fromkeys(shard.engine for shard in timeline if shard.engine))


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
    *,
    started: float,
    first: float | None = None,
    committed_here: bool = False,
    draft: Draft | None = None,
    collector: ReportCollector | None = None,
) -> JobSummary:
    """Say what became of a committed job, and put its rows into the SQL table if there is one.

    Args:
        job: Committed.
        started: Seconds since the epoch, of this run.
        first: Seconds until the first shard was done.
        committed_here: Whether this run committed.
        draft: Of this run; None reads the times from the output.
        collector: Of this run; None reads the results.
    """
    committed = read_commit(job.layout)
    assert committed is not None
    if collector is None:
        collector = ReportCollector()
        for rows in read_results(job.layout.location, columns=list(REPORT_COLUMNS)):
            collector.add(rows)
    timeline = draft.timeline if draft is not None else _stored_timeline(job.layout)
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
        parts=[storage.join(job.layout.location, part.name) for part in committed.parts],
        report=job.layout.report,
        model=job.request.model,
        output=job.layout.location,
        committed_here=committed_here,
        remarks=job.plan.remarks,
        skipped=job.plan.skipped,
        engines=_engines(timeline),
        sql_rows=sql_rows,
    )


def _stored_timeline(layout: OutputLayout) -> list[ShardSummary]:
    try:
        content = storage.read_bytes(layout.timeline)
    except FileNotFoundError:
        return []
    return [
        ShardSummary(**record) for record in pq.read_table(pa.BufferReader(content)).to_pylist()
    ]
