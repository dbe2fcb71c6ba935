"""Measure a model on labelled images: metrics with intervals, KPIs, and a page.

    python -m eagleray.jobs.evaluate flowers@candidate flowers-test/
    eagleray evaluate flowers@candidate flowers-test/ --kpi kpi.txt
    eagleray evaluate flowers/3 test.csv --label-column kind --slice camera --output page.html
    eagleray evaluate flowers/3 test.csv --kpi kpi.txt --current flowers@production --json
    eagleray evaluate flowers/3 flowers/ --split test
    eagleray evaluate flowers/3 flowers/ --split-file split.parquet --split test

The file reads from top to bottom: parse, build, run, report. It needs no Ray: one process computes
the predictions, on a GPU where there is one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from eagleray.cli.common import ClusterOption, JsonOption, SpecFileOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.core.cluster_address import require_node_address
from eagleray.core.errors import KpiFailedError
from eagleray.core.settings import Settings, read_settings
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.job import (
    EvaluatedModel,
    EvaluationSummary,
    open_evaluation,
    run_evaluation,
)
from eagleray.evaluation.leakage import NO_LEAKAGE, Leakage
from eagleray.evaluation.spec import EvaluateSpec
from eagleray.registry.leakage import find_leakage
from eagleray.registry.references import load_model, load_parent
from eagleray.registry.registry import Registry


def leakage_of(model: EvaluatedModel | None, images: LabelledImages, settings: Settings) -> Leakage:
    """Find the images that a registered version learned from."""
    if model is None or not model.version:
        return NO_LEAKAGE
    registry = Registry(settings)
    return find_leakage(registry, registry.get(model.name, version=int(model.version)), images)


def record(
    summary: EvaluationSummary, model: EvaluatedModel, settings: Settings
) -> EvaluationSummary:
    """Record the metrics in the registry if the model is a registered version."""
    if not model.version:
        return summary
    registry = Registry(settings)
    version = registry.get(model.name, version=int(model.version))
    registry.record_evaluation(version, summary.record, summary.predictions)
    return dataclasses.replace(summary, recorded_as=version.reference)


def show(summary: EvaluationSummary, console: Console) -> None:
    """Report the metrics, the KPIs and the failures."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    rows = []
    for name, value in summary.evaluation.headline.items():
        found = summary.intervals.get(name)
        between = f"{found.low:.4f} to {found.high:.4f}" if found else ""
        rows.append([name, f"{value:.4f}", between])
    num_failed = summary.record.num_failed
    title = f"{summary.record.num_images:,} images ({num_failed:,} failed)"
    console.table(title, ["metric", "value", "95 % interval"], rows)
    if summary.evaluation.task.positive is not None:
        console.say(f"positive label: {summary.evaluation.task.positive}")
    for result in summary.kpi_results:
        console.say(str(result))
    for failure in summary.evaluation.failures[:10]:
        console.warn(f"failed: {failure.uri}: {failure.reason}: {failure.message}")
    if summary.recorded_as:
        console.say(f"recorded with {summary.recorded_as}")
    console.say(f"page:  {summary.page}")


def require_reached(summary: EvaluationSummary) -> None:
    """End the command with exit code 4 when a KPI fails.

    Raises:
        KpiFailedError: If a KPI fails; the message names all that fail, or says why none counts.
    """
    if summary.kpi_results and all(result.not_counted for result in summary.kpi_results):
        raise KpiFailedError(f"The KPIs do not count: {' '.join(summary.warnings)}")
    failed = [result for result in summary.kpi_results if not result.passed]
    if failed:
        raise KpiFailedError(
            f"{len(failed)} of {len(summary.kpi_results)} KPIs failed: "
            f"{'; '.join(str(result) for result in failed)}."
        )


@with_spec_options(EvaluateSpec, argument=("model", "data"))
def main(
    fields: dict[str, Any],
    spec: SpecFileOption = None,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure a model on labelled images: metrics with intervals, KPIs, and a page."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = read_settings()
        settings.make_home()
        if cluster is not None:
            require_node_address(cluster)
            console.note("An evaluation is one process, which runs on this machine of the cluster.")
        request = read_spec(EvaluateSpec, fields, file=spec).with_settings(settings)
        job = open_evaluation(
            request,
            settings,
            lambda name: load_model(name, settings),
            lambda model: load_parent(model, settings),
        )
        for note in job.images.notes:
            console.note(note)
        found = leakage_of(job.model, job.images, settings)
        compares = any(kpi.baseline == "current" for kpi in job.kpis)
        current = leakage_of(job.current if compares else None, job.images, settings)
        for one in (found, current):
            if one:
                console.warn(one.sentence)
        done = run_evaluation(job, console, leakage=found, current_leakage=current)
        summary = record(done, job.model, settings)
        show(summary, console)
        require_reached(summary)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
