"""Convert labels of objects from one format to another: COCO, Pascal VOC, YOLO, masks.

    python -m eagleray.jobs.convert cells/ cells-coco/ --to coco
    eagleray convert cells/ cells-coco/ --to coco
    eagleray convert instances_train.json cells-yolo/ --to yolo --copy-images
    eagleray convert s3://bucket/nuclei s3://bucket/nuclei-masks --to masks

The file reads from top to bottom: parse, build, run, report. What a format cannot carry, such as
masks in Pascal VOC, is counted.
"""

from __future__ import annotations

from typing import Any

from eagleray.cli.common import JsonOption, SpecFileOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_settings, run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.data.annotations.job import ConvertSummary, open_conversion, run_conversion
from eagleray.data.annotations.spec import ConvertSpec


def show(summary: ConvertSummary, console: Console) -> None:
    """Report what was written, and what was lost."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    console.facts(
        "Converted",
        {
            "images": f"{summary.num_images:,} ({summary.num_copied:,} copied)",
            "objects": f"{summary.num_objects:,}",
            "classes": f"{summary.classes:,}",
            "files of labels": f"{summary.num_files:,} ({summary.format})",
            "output": summary.output,
        },
    )
    for words, count in summary.losses.items():
        console.warn(f"not in the output: {count:,} {words}")
    if summary.finding:
        console.note(summary.finding)


@with_spec_options(ConvertSpec, argument=("data", "output"))
def main(
    fields: dict[str, Any], spec: SpecFileOption = None, json_output: JsonOption = False
) -> None:
    """Convert labels of objects from one format to another; what is lost is counted."""
    with command_errors():
        console = Console(json_output=json_output)
        request = read_spec(ConvertSpec, fields, file=spec).with_settings(job_settings())
        job = open_conversion(request)
        for note in job.notes:
            console.note(note)
        show(run_conversion(job, console), console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
