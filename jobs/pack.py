"""Pack many small files into few large ones, which are faster to read again and again.

    python -m eagleray.jobs.pack photos/ --output packed/
    eagleray pack photos/ --output s3://bucket/packed --file-size 512MB
    eagleray pack list.csv --column photo --output shards/ --format webdataset
    eagleray pack packed/_failures.parquet --output again/

The file reads from top to bottom: parse, build, run, report. Images are copied byte by byte; files
that are not images are packed as well, and inputs that cannot be read are listed in
`_failures.parquet`. A run that was stopped is resumed by the same command. The output is an input
of `eagleray predict` and of `eagleray pack`.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from eagleray.cli.common import ClusterOption, JsonOption, SpecFileOption, VerboseOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.core.logs import add_to_lines
from eagleray.core.yielding import process_signal
from eagleray.packing.job import PackSummary, finish_pack, open_pack, run_pack
from eagleray.packing.spec import PackSpec


def show(summary: PackSummary, console: Console) -> None:
    """Report what became of the job."""
    if console.for_scripts:
        console.emit(summary.as_json())
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


@with_spec_options(PackSpec, argument="inputs")
def main(
    fields: dict[str, Any],
    spec: SpecFileOption = None,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Pack many small files into few large ones, with a manifest; every input is accounted for."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        request = read_spec(PackSpec, fields, file=spec).with_settings(settings)
        job = open_pack(request, settings, console)
        add_to_lines(job_id=job.plan.job_id)
        console.note(f"{job.plan.num_rows:,} images, job {job.plan.job_id}")
        for remark in job.plan.remarks:
            console.note(remark)
        if job.committed is not None:
            console.note(f"Job {job.plan.job_id} is complete already; nothing was run.")
            show(finish_pack(job), console)
            return
        with contextlib.ExitStack() as stack:
            session = job_session(settings, address=cluster, verbose=verbose)
            workers = functools.cache(lambda: stack.enter_context(session))
            summary = run_pack(job, workers, console, yield_signal=process_signal())
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
