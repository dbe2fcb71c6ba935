"""Classify images in batch; every image comes back with an answer or a reason.

    python -m jobs.predict photos/ --model digits@production --output results/
    eagleray predict 's3://bucket/2026/**/*.jpg' --model digits/3 --output results/ --format csv
    eagleray predict list.csv --column photo --model random:resnet18 --output results/

Reads from top to bottom: the request, build, run, report, and last the words of the command line.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow.parquet
import typer

from eagleray import storage
from eagleray.batch.commit import OutputLayout, commit, read_shards, require_free_output
from eagleray.batch.manifest import build_manifest
from eagleray.batch.pipeline import num_workers_for, run_shards, threads_per_worker
from eagleray.batch.report import ReportCollector, Totals, render_report
from eagleray.batch.results import OutputFormat
from eagleray.batch.shards import cut_shards
from eagleray.batch.worker import WorkerOptions
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import ClusterOption, JsonOption, VerboseOption, job_session, run_job
from eagleray.cluster import Cluster
from eagleray.errors import InputError
from eagleray.execution import CompileMode, Precision
from eagleray.imaging.contract import canonical_json
from eagleray.models.sources import LoadedModel, load_model
from eagleray.predictor import Predictor
from eagleray.settings import Settings, read_settings
from eagleray.tables import digest_table

MOST_TOP_K = 1000


@dataclass(frozen=True)
class PredictRequest:
    """What the user asked for.

    Attributes:
        inputs: Folders, patterns, CSV tables or images.
        model: Reference of a model.
        output: Folder or URI that is new.
        column: CSV column of the locations; None looks for the usual names.
        output_format: Of the result files.
        top_k: Labels listed for each image.
        precision: Of the forward pass.
        compile_mode: Of the forward pass.
    """

    inputs: tuple[str, ...]
    model: str
    output: str
    column: str | None = None
    output_format: OutputFormat = "parquet"
    top_k: int = 5
    precision: Precision = "auto"
    compile_mode: CompileMode = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MOST_TOP_K:
            raise InputError(f"--top-k must be 1 to {MOST_TOP_K}, not {self.top_k}.")


@dataclass(frozen=True)
class PredictJob:
    """A request with all that it needs: the model is verified, the inputs are listed."""

    request: PredictRequest
    model: LoadedModel
    manifest: Any
    layout: OutputLayout
    settings: Settings

    @property
    def plan(self) -> dict[str, object]:
        """What will be run, in words that a reader of the output understands."""
        package = self.model.package
        return {
            "inputs": ", ".join(self.request.inputs),
            "images": self.manifest.num_rows,
            "manifest_digest": digest_table(
                [self.manifest.column(name).to_pylist() for name in ("uri", "size", "version")]
            ),
            "model": self.model.reference,
            "model_version": self.model.version,
            "model_digest": package.digest,
            "task": package.task.name,
            "architecture": package.manifest.architecture.name,
            "contract_digest": package.contract.digest,
            "contract": package.contract.to_json(),
            "format": self.request.output_format,
            "top_k": self.request.top_k,
        }


@dataclass(frozen=True)
class PredictSummary:
    """What became of the job."""

    totals: Totals
    reasons: dict[str, int]
    labels: dict[str, int]
    parts: list[str]
    report: str
    model: str
    output: str

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "images": self.totals.num_rows,
            "ok": self.totals.num_ok,
            "failed": self.totals.num_failed,
            "reasons": self.reasons,
            "labels": self.labels,
            "seconds": round(self.totals.seconds, 3),
            "first_result_seconds": round(self.totals.first_result_seconds, 3),
            "images_per_second": round(self.totals.images_per_second, 2),
            "model": self.model,
            "output": self.output,
            "parts": self.parts,
            "report": self.report,
        }


def build(request: PredictRequest, settings: Settings) -> PredictJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: With what to mend.
    """
    manifest = build_manifest(request.inputs, column=request.column)
    model = load_model(request.model, settings)
    require_free_output(request.output)
    job = PredictJob(request, model, manifest, OutputLayout(request.output), settings)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(manifest, buffer)
    storage.put_atomic(job.layout.manifest, buffer.getvalue())
    storage.put_atomic(job.layout.plan, canonical_json(job.plan).encode())
    return job


def run(job: PredictJob, cluster: Cluster, console: Console) -> PredictSummary:
    """Work on every shard, commit, and write the report."""
    started = time.perf_counter()
    shards = cut_shards(job.manifest, num_workers_for(cluster))
    options = _worker_options(job, cluster)
    _warm_up(job, options, console)
    timeline: list[tuple[float, int]] = []
    num_done = 0
    with console.progress("Predicting", job.manifest.num_rows) as bar:
        for summary in run_shards(shards, job.model, options, cluster):
            num_done += summary.num_ok + summary.num_failed
            timeline.append((time.perf_counter() - started, num_done))
            bar.advance(summary.num_ok + summary.num_failed, failed=summary.num_failed)
    collector = ReportCollector()
    for table in read_shards(job.layout, len(shards)):
        collector.add(table)
    parts = commit(job.layout, len(shards), job.manifest.num_rows, job.request.output_format)
    num_failed = collector.reasons.total()
    totals = Totals(
        num_rows=job.manifest.num_rows,
        num_ok=job.manifest.num_rows - num_failed,
        num_failed=num_failed,
        seconds=time.perf_counter() - started,
        first_result_seconds=timeline[0][0],
    )
    return _report(job, collector, totals, timeline, parts)


def _worker_options(job: PredictJob, cluster: Cluster) -> WorkerOptions:
    return WorkerOptions(
        shard_folder=job.layout.shards,
        top_k=job.request.top_k,
        device="cuda" if cluster.num_gpus else "cpu",
        precision=job.request.precision,
        compile_mode=job.request.compile_mode,
        num_threads=threads_per_worker(cluster),
        expected_images=job.manifest.num_rows,
        cache_folder=str(job.settings.cache_folder),
    )


def _warm_up(job: PredictJob, options: WorkerOptions, console: Console) -> None:
    """Compile once where that pays, so that the workers find it done, and check the model's health.

    With GPUs only workers hold a device, and they compile where they are.
    """
    if options.device != "cpu":
        return
    with console.status("Preparing the model (compiled once, then cached)"):
        predictor = Predictor(
            job.model.package,
            device=options.device,
            precision=options.precision,
            compile_mode=options.compile_mode,
            expected_images=options.expected_images,
            cache_folder=job.settings.cache_folder,
        )
        predictor.require_healthy()


def _report(
    job: PredictJob,
    collector: ReportCollector,
    totals: Totals,
    timeline: list[tuple[float, int]],
    parts: list[str],
) -> PredictSummary:
    plan = {**job.plan, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    page = render_report(collector, totals, timeline, plan, model_name=job.model.reference)
    storage.put_atomic(job.layout.report, page)
    return PredictSummary(
        totals=totals,
        reasons=dict(collector.reasons.most_common()),
        labels=dict(collector.labels.most_common()),
        parts=parts,
        report=job.layout.report,
        model=job.model.reference,
        output=job.layout.location,
    )


def show(summary: PredictSummary, console: Console) -> None:
    """Tell the user what became of the job."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    totals = summary.totals
    rows = [["ok", f"{totals.num_ok:,}"]]
    rows += [[f"failed: {reason}", f"{count:,}"] for reason, count in summary.reasons.items()]
    rows.append(["all", f"{totals.num_rows:,}"])
    console.table(f"Images through {summary.model}", ["outcome", "images"], rows)
    console.say(
        f"first result after {totals.first_result_seconds:.1f} s, all after "
        f"{totals.seconds:.1f} s ({totals.images_per_second:,.1f} images/s)"
    )
    for part in summary.parts:
        console.say(f"table: {part}")
    console.say(f"page:  {summary.report}")


def main(
    inputs: Annotated[
        list[str], typer.Argument(help="Folders, patterns, CSV tables or images.", metavar="INPUT…")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE.",
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder or URI for the results; must be new.")],
    column: Annotated[str | None, typer.Option(help="CSV column that holds the locations.")] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="Of the result files.")
    ] = "parquet",
    top_k: Annotated[int, typer.Option(help="Labels listed for each image.")] = 5,
    precision: Annotated[
        Precision, typer.Option(help="auto: bfloat16 where the hardware has it.")
    ] = "auto",
    compile_mode: Annotated[
        CompileMode, typer.Option("--compile", help="auto: when it pays for this many images.")
    ] = "auto",
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Classify images in batch: a table in which every image is accounted for, and a page."""
    with command_errors():
        console = Console(json_output=json_output)
        request = PredictRequest(
            inputs=tuple(inputs),
            model=model,
            output=output,
            column=column,
            output_format=output_format,
            top_k=top_k,
            precision=precision,
            compile_mode=compile_mode,
        )
        job = build(request, read_settings())
        console.note(f"{job.manifest.num_rows:,} images, model {job.model.reference}")
        with job_session(job.settings, address=cluster, verbose=verbose) as session:
            summary = run(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_job(main, module_docstring=__doc__)
