"""Opens a prediction job: checks everything, lists the inputs, claims the plan or finds it.

    request, model -> open_job   a `Job`, ready to run
                   -> run_job    predicts the shards that have no result, merges, commits
                   -> JobSummary what it came to

Both may be interrupted at any point and called again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from eagleray.batch.context import JobContext, WorkerOptions
from eagleray.batch.inputs import list_inputs
from eagleray.batch.pipeline import WorkerPool
from eagleray.batch.plan import PredictPlan, PredictWork
from eagleray.batch.results import result_schema
from eagleray.batch.spec import PredictSpec
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.models.imported import require_importable
from eagleray.registry.references import LoadedModel
from eagleray.sharded.columns import USER_PREFIX
from eagleray.sharded.commit import Commit, read_commit
from eagleray.sharded.history import record_job
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from eagleray.sharded.plan import read_plan, require_same_work
from eagleray.sharded.prepare import make_plan, require_free
from eagleray.sources import InputSpec
from eagleray.tasks.limits import require_limits

__all__ = ["Job", "open_job"]

_MASKS = "masks"

_FILE_BYTES = 128 * 2**20
_MAX_ROWS_PER_FILE = 250_000
_MIN_ROWS_PER_FILE = 1_000
_BYTES_OF_OURS = 250  # of a result row in memory, without the user's columns and scores


@dataclass(frozen=True)
class Job:
    """An opened job: the model is verified, the inputs are listed.

    Attributes:
        request: The request.
        model: Verified model.
        layout: The output.
        plan: Plan of the job, made now or by an earlier run.
        committed: Commit of an earlier run, if there is one.
        settings: Settings of this process.
    """

    request: PredictSpec
    model: LoadedModel
    layout: OutputLayout
    plan: PredictPlan
    committed: Commit | None
    settings: Settings

    @property
    def manifest(self) -> ManifestReader:
        """A new reader of the list of inputs."""
        return ManifestReader(self.layout.manifest(self.plan.manifest), self.plan.num_shards)

    @property
    def result_schema(self) -> pa.Schema:
        """The columns of the results."""
        work = self.plan.work
        return result_schema(
            self.model, self.manifest.schema, has_limits=bool(work.limit), has_masks=work.masks
        )

    def context(self, worker_pool: WorkerPool) -> JobContext:
        """Return what the workers need to know.

        Raises:
            InputError: If the engine does not run on the workers' device.
        """
        request = self.request
        device = "cuda" if worker_pool.uses_gpu else "cpu"
        manifest = self.model.package.manifest
        if request.engine != "auto" or (not manifest.has_weights and worker_pool.uses_gpu):
            from eagleray.inference.choice import require_engine  # the driver needs no PyTorch else

            require_engine(request.engine, manifest, device)
        options = WorkerOptions(
            top_k=request.top_k,
            limit=request.limit,
            tiling=request.tiling(self.model.package),
            masks=request.masks,
            device=device,
            precision=request.precision,
            engine=request.engine,
            num_threads=worker_pool.threads,
            shards_at_a_time=worker_pool.per_process,
            processes_per_node=worker_pool.per_node,
            seconds_per_image=request.image_timeout,
            expected_images=self.plan.num_rows // worker_pool.num_workers,
            cache_folder=str(self.settings.cache_folder),
            niceness=os.nice(0),
            gives_way=worker_pool.is_shared,
        )
        return JobContext(
            model=self.model,
            output=self.layout.location,
            manifest_folder=self.layout.manifest(self.plan.manifest),
            num_shards=self.plan.num_shards,
            options=options,
            urls=request.urls,
            s3=request.s3,
            path_policy=request.path_policy,
        )


def open_job(
    request: PredictSpec,
    model: LoadedModel,
    settings: Settings,
    reporter: ProgressReporter,
    *,
    rows_per_file: int | None = None,
) -> Job:
    """Check everything that can be wrong before expensive work starts, and list the inputs.

    An output that holds this very job is opened again: its inputs are those listed then.

    Args:
        request: The request.
        model: The model that it names, verified.
        settings: Settings of this process.
        reporter: Receives the progress.
        rows_per_file: Number of rows after which a new result file begins; None for files that
            one process can hold.

    Raises:
        UserError: If something is wrong; the message says how to fix it.
    """
    storage.use_s3(request.s3)
    package = model.package
    require_importable(package.manifest.architecture.name)
    has_weights = package.manifest.has_weights
    if request.engine != "auto" or (request.precision != "auto" and not has_weights):
        from eagleray.inference.choice import require_engine

        require_engine(request.engine, package.manifest, precision=request.precision)
    require_limits(request.limit, package.task, where=request.name_of("limit"))
    request.tiling(package)  # refused before an output is claimed
    if request.masks and _MASKS not in package.task.optional_columns:
        raise InputError(
            f"{request.name_of('masks')} is for instance models, and this is "
            f"{package.task.as_model}; leave it out."
        )
    work = request.work(
        model_version=model.version,
        model_digest=package.digest,
        contract_digest=package.contract.digest,
    )
    layout = OutputLayout(request.output)
    plan = read_plan(layout, PredictPlan)
    if plan is None:
        require_free(layout)
        listing = list_inputs(
            InputSpec(request.inputs, request.column, request.path_policy),
            since=request.since,
            failed_of=request.failed_only,
            attributes=package.attributes,
        )
        columns = listing.user_schema
        if request.sql_target is not None:  # before anything is written
            fields = [field.with_name(USER_PREFIX + field.name) for field in columns]
            request.sql_target.require_ready(
                result_schema(
                    model,
                    pa.schema(fields),
                    has_limits=bool(request.limit),
                    has_masks=request.masks,
                )
            )
        build = _plan_builder(model, work, rows_per_file or _rows_per_file(model, columns))
        plan = make_plan(layout, listing, build, reporter)
    require_same_work(layout, plan, work)
    record_job(settings, plan, layout.location, request.s3)
    job = Job(request, model, layout, plan, read_commit(layout), settings)
    if request.sql_target is not None:
        request.sql_target.require_ready(job.result_schema)
    return job


def _plan_builder(
    model: LoadedModel, work: PredictWork, rows_per_file: int
) -> Callable[..., PredictPlan]:
    """Return what makes the plan once the inputs are listed."""
    package = model.package
    return functools.partial(
        PredictPlan,
        work=work,
        task=package.task.name,
        architecture=package.manifest.architecture.name,
        contract=package.contract.to_json(),
        rows_per_file=rows_per_file,
    )


def _rows_per_file(model: LoadedModel, user_schema: pa.Schema) -> int:
    """Return the rows of a file that one process can hold."""
    bytes_per_row = _BYTES_OF_OURS + 64 * len(user_schema) + model.package.task.result_bytes
    return max(_MIN_ROWS_PER_FILE, min(_MAX_ROWS_PER_FILE, _FILE_BYTES // bytes_per_row))
