"""`eagleray models quantize`: makes an int8 version of a registered version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from eagleray.cli.common import JsonOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.compression.spec import QuantizeSpec

if TYPE_CHECKING:  # it takes seconds to import
    from eagleray.compression.job import QuantizeSummary

__all__ = ["quantize_app"]

quantize_app = typer.Typer()


@quantize_app.command("quantize")
@with_spec_options(QuantizeSpec, argument="model")
def quantize_version(fields: dict[str, Any], json_output: JsonOption = False) -> None:
    """Quantize a registered version to int8, and register the result as the model's next version.

    The version that it is made from stays as it is. The new one keeps its labels, thresholds and
    temperature, is tested on the same images, and runs on CPUs.
    """
    with command_errors():
        console = Console(json_output=json_output)
        from eagleray.compression.job import run_quantization
        from eagleray.compression.prepare import open_quantization
        from eagleray.core.settings import read_settings

        settings = read_settings()
        settings.make_home()
        spec = read_spec(QuantizeSpec, fields).with_settings(settings)
        job = open_quantization(spec, settings)
        for note in job.notes:
            console.note(note)
        summary = run_quantization(job, console)
        for warning in summary.warnings:
            console.warn(warning)
        if json_output:
            console.emit(summary.as_json())
            return
        _show(summary, console)


def _show(summary: QuantizeSummary, console: Console) -> None:
    graph, quantization = summary.graph, summary.package.manifest.quantization
    assert quantization is not None
    golden = summary.package.golden
    if summary.evaluation is not None:
        rows = [
            [name, _figure(summary.parent_metrics.get(name)), _figure(value)]
            for name, value in summary.evaluation.headline.items()
        ]
        title = f"Tested on {summary.evaluation.num_images:,} images"
        columns = ["metric", summary.parent.reference, summary.version.reference]
        console.table(title, columns, rows)
    console.facts(
        f"{summary.version.reference}, quantized from {summary.parent.reference}",
        {
            "precision": quantization.precision,
            "calibrated on": f"{quantization.num_images:,} images",
            "layers in float32": ", ".join(quantization.float_layers)
            or f"none of {graph.num_layers}",
            "loss on held-out images": f"{graph.drop:.4f} ({graph.score}, "
            f"{graph.num_held_out:,} images)",
            "golden images": f"{len(golden.images)}, with a tolerance of {golden.tolerance:.3g}"
            if golden.images
            else "none",
            "temperature and thresholds": "those of the parent",
            "engine": summary.engine,
            **({"page": summary.page} if summary.page else {}),
        },
    )
    aliases = ", ".join(summary.version.aliases)
    console.say(
        f"{summary.version.reference} is registered" + (f" as {aliases}." if aliases else ".")
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
