"""Predict images in batch: one row for each image, with a prediction or a reason code.

    python -m eagleray.jobs.predict photos/ --model digits@production --output results/
    eagleray predict 's3://bucket/2026/**/*.jpg' --model digits/3 --output results/ --format csv
    eagleray predict list.csv --column photo --model random:resnet18 --output results/
    eagleray predict shards/ --model digits@production --output s3://bucket/results --quote
    eagleray predict --failed-only results/ --model digits@production --output again/

The file reads from top to bottom: parse, build, run, report. A run that was stopped is resumed by
the same command.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict
from typing import Annotated, Any

import typer

from eagleray.batch.job import Job, open_job
from eagleray.batch.nodes import require_nodes_able
from eagleray.batch.pipeline import require_workers
from eagleray.batch.quote import Quote, quote_job
from eagleray.batch.run import JobSummary, finish_job, run_job
from eagleray.batch.spec import PredictSpec
from eagleray.cli.common import ClusterOption, JsonOption, SpecFileOption, VerboseOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.core.background import import_ahead
from eagleray.core.logs import add_to_lines
from eagleray.core.ray_session import Cluster
from eagleray.core.yielding import process_signal
from eagleray.io import storage
from eagleray.registry.references import LoadedModel, load_model


def show(summary: JobSummary, console: Console) -> None:
    """Report what became of the job."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    totals = summary.totals
    rows = [["ok", f"{totals.num_ok:,}"]]
    rows += [[f"failed: {reason}", f"{count:,}"] for reason, count in summary.reasons.items()]
    rows.append(["all", f"{totals.num_rows:,}"])
    console.table(f"Images through {summary.model}", ["outcome", "images"], rows)
    if summary.first_result_seconds is not None:
        console.say(
            f"first result after {summary.first_result_seconds:.1f} s, all after "
            f"{summary.seconds:.1f} s ({totals.images_per_second:,.1f} images/s, steady state)"
        )
    if summary.first_result_seconds is not None and not summary.committed_here:
        console.say("Another run of this job has committed this output; its results stand.")
    for engine in summary.engines:
        console.say(f"engine: {engine}")
    for file in summary.files:
        console.say(f"table: {file}")
    if summary.sql_rows is not None:
        console.say(f"sql:   {summary.sql_rows:,} rows")
    console.say(f"page:  {summary.report}")


def show_quote(quote: Quote, console: Console) -> None:
    """Report what the job would take."""
    if console.for_scripts:
        console.emit(asdict(quote))
    else:
        console.facts("What this job would take", quote.facts())


def _describe(job: Job, console: Console) -> None:
    console.note(f"{job.plan.num_rows:,} images, model {job.request.model}, job {job.plan.job_id}")
    for remark in job.plan.remarks:
        console.note(remark)
    if job.committed is not None:
        console.note(f"Job {job.plan.job_id} is complete already; nothing was run.")


def _require_able_nodes(request: PredictSpec, model: LoadedModel, cluster: Cluster) -> None:
    uses_gpu = cluster.uses_gpus(request.device)
    manifest = model.package.manifest
    require_nodes_able(request.engine, request.precision, manifest, uses_gpu=uses_gpu)


def _confirm_start(console: Console, *, yes: bool) -> bool:
    if yes:
        return True
    if not console.can_ask:
        console.note("The job was not started: --yes starts it after a quote without asking.")
        return False
    return typer.confirm("Start the job?", err=True)


@with_spec_options(PredictSpec, argument="inputs")
def main(
    fields: dict[str, Any],
    spec: SpecFileOption = None,
    quote: Annotated[
        bool, typer.Option("--quote", help="First run a sample and say what the job would take.")
    ] = False,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of the machine or cluster, for --quote.", min=0)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start after a quote without asking.")] = False,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Predict images in batch: a table with one row for each image, and a page."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        request = read_spec(PredictSpec, fields, file=spec).with_settings(settings)
        storage.use_s3(request.s3)
        model = load_model(request.model, settings)
        with contextlib.ExitStack() as stack:
            session = functools.cache(
                lambda: stack.enter_context(
                    job_session(
                        settings,
                        address=cluster,
                        verbose=verbose,
                        meanwhile=lambda: import_ahead("ray.data", "matplotlib.figure"),
                    )
                )
            )
            if cluster or settings.ray_address:  # before the inputs are listed
                require_workers(session(), request.worker_range, request.device)
                _require_able_nodes(request, model, session())
            elif request.precision == "bfloat16":  # the workers run on this machine
                from eagleray.inference.choice import require_precision_here

                require_precision_here(request.engine, request.precision)
            job = open_job(request, model, settings, console)
            add_to_lines(job_id=job.plan.job_id)
            _describe(job, console)
            if job.committed is not None:
                show(finish_job(job), console)
                return
            if quote:
                show_quote(quote_job(job, session(), price_per_hour=price_per_hour), console)
                if not _confirm_start(console, yes=yes):
                    return
            summary = run_job(job, session, console, yield_signal=process_signal())
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
