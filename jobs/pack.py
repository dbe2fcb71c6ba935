"""Pack many small files into few large ones, for those who read them more than once.

    python -m eagleray.jobs.pack photos/ --output packed/
    eagleray pack photos/ --output s3://bucket/packed --part-size 512MB
    eagleray pack list.csv --column photo --output shards/ --format webdataset
    eagleray pack packed/_failures.parquet --output again/

Reads from top to bottom: parse, build, run, report. Images are copied byte by byte; what is no
image is packed as well, and what cannot be read is listed in `_failures.parquet`. A run that was
stopped goes on where it was: give the same command again. The output is an input of `eagleray
predict` and of `eagleray pack`.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

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
from eagleray.io import storage
from eagleray.packing.files import PackFormat
from eagleray.packing.job import PackSummary, finish_pack, open_pack, run_pack
from eagleray.packing.plan import PackRequest, parse_part_size
from eagleray.sharded.failure_limit import FailureLimit


def as_json(summary: PackSummary) -> dict[str, Any]:
    """Return what became of a job, for scripts."""
    committed = summary.committed
    return {
        "job": committed.job_id,
        "images": committed.num_rows,
        "packed": committed.num_ok,
        "failed": committed.num_failed,
        "reasons": summary.reasons,
        "skipped": committed.skipped,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 2),
        "megabytes": round(summary.megabytes, 3),
        "megabytes_per_second": round(summary.megabytes_per_second, 2),
        "output": summary.output,
        "files": [storage.join(summary.output, file.name) for file in committed.files],
        "failures": summary.failures,
        "committed_here": summary.committed_here,
    }


def show(summary: PackSummary, console: Console) -> None:
    """Tell the user what became of the job."""
    if console.for_scripts:
        console.emit(as_json(summary))
        return
    committed = summary.committed
    rows = [["packed", f"{committed.num_ok:,}"]]
    rows += [[f"failed: {reason}", f"{count:,}"] for reason, count in summary.reasons.items()]
    rows.append(["all", f"{committed.num_rows:,}"])
    console.table("Packed images", ["outcome", "images"], rows)
    if summary.seconds:
        console.say(
            f"{summary.seconds:.1f} s, {summary.images_per_second:,.1f} images/s, "
            f"{summary.megabytes_per_second:,.1f} MB/s"
        )
    num_files = len(committed.files)
    console.say(
        f"{summary.megabytes:,.1f} MB in {num_files:,} file{'s' * (num_files != 1)}: "
        f"{summary.output}"
    )
    if summary.failures is not None:
        console.say(f"failures: {summary.failures}")


def main(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, patterns, tables, archives or images.",
            metavar="INPUT…",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option(help="Folder or URI for the parts; new, or of the same job.")
    ],
    column: Annotated[
        str | None, typer.Option(help="Table column that holds the locations, or the images.")
    ] = None,
    part_format: Annotated[PackFormat, typer.Option("--format", help="Of the parts.")] = "parquet",
    part_size: Annotated[str, typer.Option(help="Of the images in a part.")] = "256MB",
    max_failures: Annotated[
        str, typer.Option(help="Stop when more inputs than this cannot be read: 1% or 200.")
    ] = "100%",
    allow_urls: Annotated[
        list[str] | None,
        typer.Option(help="Host that images may be fetched from by http(s). Repeatable."),
    ] = None,
    s3_endpoint: S3EndpointOption = None,
    s3_region: S3RegionOption = None,
    s3_profile: S3ProfileOption = None,
    s3_anonymous: S3AnonymousOption = False,
    s3_requester_pays: S3RequesterPaysOption = False,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Pack many small files into few large ones, with a manifest; every input is accounted for."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        request = PackRequest(
            inputs=tuple(inputs),
            output=output,
            column=column,
            part_format=part_format,
            part_bytes=parse_part_size(part_size),
            max_failures=FailureLimit.parse(max_failures),
            urls=url_policy(settings, allow_urls),
            s3=s3_options(
                settings,
                endpoint=s3_endpoint,
                region=s3_region,
                profile=s3_profile,
                anonymous=s3_anonymous,
                requester_pays=s3_requester_pays,
            ),
        )
        job = open_pack(request, settings, console)
        console.note(f"{job.plan.num_rows:,} images, job {job.plan.job_id}")
        for remark in job.plan.remarks:
            console.note(remark)
        if job.committed is not None:
            console.note(f"Job {job.plan.job_id} is complete already; nothing was run.")
            show(finish_pack(job), console)
            return
        with contextlib.ExitStack() as stack:
            session = job_session(settings, address=cluster, verbose=verbose)
            summary = run_pack(job, lambda: stack.enter_context(session), console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
