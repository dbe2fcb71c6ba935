"""Classify images in batch; every image comes back with an answer or a reason.

    python -m eagleray.jobs.predict photos/ --model digits@production --output results/
    eagleray predict 's3://bucket/2026/**/*.jpg' --model digits/3 --output results/ --format csv
    eagleray predict list.csv --column photo --model random:resnet18 --output results/
    eagleray predict shards/ --model digits@production --output s3://bucket/results --quote
    eagleray predict --failed-only results/ --model digits@production --output again/

Reads from top to bottom: parse, build, run, report, and last the words of the command line. A run
that was stopped goes on where it was: give the same command again.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict
from typing import Annotated, Any

import typer

from eagleray.batch.job import Job, JobSummary, finish_job, open_job, run_job
from eagleray.batch.quote import Quote, quote_job
from eagleray.batch.sinks.sql import SqlSink
from eagleray.batch.spec import FailureLimit, JobRequest
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import (
    ClusterOption,
    JsonOption,
    S3AnonymousOption,
    S3EndpointOption,
    S3ProfileOption,
    S3RegionOption,
    S3RequesterPaysOption,
    VerboseOption,
    job_session,
    job_settings,
    run_command,
    s3_options,
    url_policy,
)
from eagleray.core.errors import InputError
from eagleray.core.types import CompileMode, OutputFormat, Precision


def parse_workers(text: str | None) -> tuple[int, int] | None:
    """Read `4` or `4..16`.

    Raises:
        InputError: It is neither.
    """
    if text is None:
        return None
    fewest, _, most = text.partition("..")
    try:
        bounds = int(fewest), int(most or fewest)
    except ValueError:
        bounds = (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise InputError(f"--workers must be like 4 or 4..16, not {text!r}.")
    return bounds


def as_json(summary: JobSummary) -> dict[str, Any]:
    """Return what became of a job, for scripts."""
    totals = summary.totals
    first = summary.first_result_seconds
    return {
        "job": summary.job_id,
        "images": totals.num_rows,
        "ok": totals.num_ok,
        "failed": totals.num_failed,
        "reasons": summary.reasons,
        "labels": summary.labels,
        "skipped": summary.skipped,
        "remarks": summary.remarks,
        "seconds": round(summary.seconds, 3),
        "first_result_seconds": None if first is None else round(first, 3),
        "images_per_second": round(totals.images_per_second, 2),
        "model": summary.model,
        "output": summary.output,
        "parts": summary.parts,
        "report": summary.report,
        "committed_here": summary.committed_here,
        "engines": summary.engines,
        "sql_rows": summary.sql_rows,
    }


def show(summary: JobSummary, console: Console) -> None:
    """Tell the user what became of the job."""
    if console.for_scripts:
        console.emit(as_json(summary))
        return
    totals = summary.totals
    rows = [["ok", f"{totals.num_ok:,}"]]
    rows += [[f"failed: {reason}", f"{count:,}"] for reason, count in summary.reasons.items()]
    rows.append(["all", f"{totals.num_rows:,}"])
    console.table(f"Images through {summary.model}", ["outcome", "images"], rows)
    if summary.first_result_seconds is not None:
        console.say(
            f"first result after {summary.first_result_seconds:.1f} s, all after "
            f"{summary.seconds:.1f} s ({totals.images_per_second:,.1f} images/s at work)"
        )
    if summary.first_result_seconds is not None and not summary.committed_here:
        console.say("Another run of this job has committed this output; its results stand.")
    for engine in summary.engines:
        console.say(f"engine: {engine}")
    for part in summary.parts:
        console.say(f"table: {part}")
    if summary.sql_rows is not None:
        console.say(f"sql:   {summary.sql_rows:,} rows")
    console.say(f"page:  {summary.report}")


def show_quote(quote: Quote, console: Console) -> None:
    """Tell the user what the job would take."""
    if console.for_scripts:
        console.emit(asdict(quote))
        return
    failed = sum(quote.reasons.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in quote.reasons.items())
    facts: dict[str, object] = {
        "images": f"{quote.num_rows:,}",
        "sampled": f"{quote.num_sampled:,}",
        "failed in the sample": f"{failed} ({reasons})" if failed else "none",
        "images per second": f"{quote.images_per_second:,.1f} with {quote.num_workers} workers",
        "expected time": _duration(quote.seconds),
        "expected results": f"{quote.output_bytes / 1e6:,.1f} MB",
    }
    if quote.price is not None:
        facts["expected price"] = f"{quote.price:,.2f}"
    console.facts("What this job would take", facts)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def _shall_start(console: Console, *, yes: bool) -> bool:
    if yes:
        return True
    if not console.can_ask:
        console.note("Nothing was started: say --yes to start after a quote without being asked.")
        return False
    return typer.confirm("Start the job?", err=True)


def _finished(job: Job, console: Console) -> JobSummary:
    console.note(f"Job {job.plan.job_id} is complete already; nothing was run.")
    return finish_job(job)


def main(
    model: Annotated[
        str,
        typer.Option(help="NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE."),
    ],
    output: Annotated[
        str, typer.Option(help="Folder or URI for the results; new, or of the same job.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, patterns, tables, archives or images.",
            metavar="INPUT…",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Table column that holds the locations, or the images.")
    ] = None,
    failed_only: Annotated[
        str | None, typer.Option(help="Earlier output whose failures are the inputs.")
    ] = None,
    since: Annotated[
        list[str] | None,
        typer.Option(help="Earlier output; only what is new or changed since. Repeatable."),
    ] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="Of the result files.")
    ] = "parquet",
    top_k: Annotated[int, typer.Option(help="Labels listed for each image.")] = 5,
    sql: Annotated[
        str | None, typer.Option(help="Database URL; the results go into a table there as well.")
    ] = None,
    sql_table: Annotated[str, typer.Option(help="Of --sql.")] = "predictions",
    quote: Annotated[
        bool, typer.Option("--quote", help="First run a sample and say what the job would take.")
    ] = False,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the machine or cluster, for --quote.", min=0)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start after a quote without asking.")] = False,
    max_failures: Annotated[
        str, typer.Option(help="Stop when more inputs than this fail: 1% or 200.")
    ] = "100%",
    image_timeout: Annotated[float, typer.Option(help="Seconds that decoding one may take.")] = 60,
    allow_urls: Annotated[
        list[str] | None,
        typer.Option(help="Host that images may be fetched from by http(s). Repeatable."),
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option(
            help="Prefix of the locations that may be read, also of those that a table names; "
            "default: any. Repeatable."
        ),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="4, or 4..16 on a cluster that grows; default: all cores.")
    ] = None,
    split: Annotated[
        bool | None,
        typer.Option(
            "--split/--fused", help="Decode in workers of their own; default: where GPUs are."
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="auto: the faster one, as measured on the machine.")
    ] = "auto",
    compile_mode: Annotated[
        CompileMode, typer.Option("--compile", help="auto: when it pays for this many images.")
    ] = "auto",
    s3_endpoint: S3EndpointOption = None,
    s3_region: S3RegionOption = None,
    s3_profile: S3ProfileOption = None,
    s3_anonymous: S3AnonymousOption = False,
    s3_requester_pays: S3RequesterPaysOption = False,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Classify images in batch: a table in which every image is accounted for, and a page."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        request = JobRequest(
            inputs=tuple(inputs or ()),
            model=model,
            output=output,
            column=column,
            failed_of=failed_only,
            since=tuple(since or ()),
            output_format=output_format,
            top_k=top_k,
            sql=SqlSink.parse(sql, sql_table) if sql else None,
            max_failures=FailureLimit.parse(max_failures),
            seconds_per_image=image_timeout,
            workers=parse_workers(workers),
            split=split,
            precision=precision,
            compile_mode=compile_mode,
            urls=url_policy(settings, allow_urls),
            within=tuple(within or ()),
            s3=s3_options(
                settings,
                endpoint=s3_endpoint,
                region=s3_region,
                profile=s3_profile,
                anonymous=s3_anonymous,
                requester_pays=s3_requester_pays,
            ),
        )
        job = open_job(request, settings, console)
        console.note(f"{job.plan.num_rows:,} images, model {request.model}, job {job.plan.job_id}")
        for remark in job.plan.remarks:
            console.note(remark)
        if job.committed is not None:
            show(_finished(job, console), console)
            return
        with contextlib.ExitStack() as stack:
            session = functools.cache(
                lambda: stack.enter_context(job_session(settings, address=cluster, verbose=verbose))
            )
            if quote:
                show_quote(quote_job(job, session(), price_per_hour=price_per_hour), console)
                if not _shall_start(console, yes=yes):
                    return
            summary = run_job(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
