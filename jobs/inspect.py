"""Inspect labelled images before training: unreadable files, duplicates, classes, a split.

    python -m eagleray.jobs.inspect flowers/ --output report.html
    eagleray inspect flowers/ --output report.html
    eagleray inspect photos.csv --label-column kind --group-column camera --output report.html
    eagleray inspect tags.parquet --task multilabel --separator , --output report.html
    eagleray inspect flowers/ --split-file split.parquet --output report.html

The file reads from top to bottom: parse, build, run, report.
"""

from __future__ import annotations

from typing import Any

from eagleray.cli.common import ClusterOption, JsonOption, SpecFileOption, VerboseOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.data.job import InspectSummary, open_inspection, run_inspection
from eagleray.data.spec import InspectSpec


def show(summary: InspectSummary, console: Console) -> None:
    """Report what was found."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    report = summary.report
    facts: dict[str, object] = {
        "images": f"{report.num_images:,} ({len(report.unreadable):,} unreadable)",
        "splits": ", ".join(f"{name} {count:,}" for name, count in report.splits.items()),
    }
    if report.classes:
        ratio = f"the largest has {report.imbalance:.1f} times the images of the smallest"
        facts["classes"] = f"{len(report.classes):,}; {ratio}"
    if report.objects is not None:
        sizes = ", ".join(f"{count:,} {size}" for size, count in report.objects.sizes().items())
        facts["objects"] = f"{report.objects.num_objects:,} ({sizes})"
        facts["images without objects"] = f"{report.objects.num_empty:,}"
    facts["formats"] = ", ".join(f"{name} {count:,}" for name, count in report.formats.items())
    facts["report"] = summary.output
    if summary.split_file is not None:
        facts["split"] = summary.split_file
    console.facts("The data", facts)
    for warning in report.warnings:
        console.warn(f"warning: {warning}")


@with_spec_options(InspectSpec, argument="data")
def main(
    fields: dict[str, Any],
    spec: SpecFileOption = None,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Inspect labelled images before a model learns them, and divide them once."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        request = read_spec(InspectSpec, fields, file=spec).with_settings(settings)
        job = open_inspection(request, settings)
        for note in job.notes:
            console.note(note)
        console.note(f"scanning {len(job.all_images):,} images")
        with job_session(settings, address=cluster, verbose=verbose) as session:
            summary = run_inspection(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
