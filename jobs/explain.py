"""Explain what a classifier predicts for images: where the evidence is, on one page.

    python -m eagleray.jobs.explain flowers@production photos/ --output page.html
    eagleray explain flowers@production photos/ --output page.html
    eagleray explain flowers/3 photos/ --label rose --output page.html

The file reads from top to bottom: parse, build, run, report. It needs no Ray: one process predicts
and explains the images.
"""

from __future__ import annotations

from typing import Any

from eagleray.cli.common import ClusterOption, JsonOption, SpecFileOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import run_command
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.core.cluster_address import require_node_address
from eagleray.core.settings import read_settings
from eagleray.explanations.job import ExplainSummary, open_explanations, run_explanations
from eagleray.explanations.spec import ExplainSpec
from eagleray.registry.references import load_model


def show(summary: ExplainSummary, console: Console) -> None:
    """Report what was explained."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    counts = summary.patches.counts
    rows = [[label, f"{count:,}"] for label, count in counts.items()]
    console.table("Explained images", ["label", "images"], rows)
    for uri, failure in list(summary.failures.items())[:10]:
        console.warn(f"failed: {uri}: {failure.reason}: {failure.message}")
    console.say(f"page: {summary.page}")


@with_spec_options(ExplainSpec, argument=("model", "images"))
def main(
    fields: dict[str, Any],
    spec: SpecFileOption = None,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
) -> None:
    """Explain what a classifier predicts for images: where the evidence is, on one page."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = read_settings()
        settings.make_home()
        if cluster is not None:
            require_node_address(cluster)
            console.note("This is one process, which runs on this machine of the cluster.")
        request = read_spec(ExplainSpec, fields, file=spec).with_settings(settings)
        job = open_explanations(request, settings, lambda name: load_model(name, settings))
        for note in job.notes:
            console.note(note)
        show(run_explanations(job, console), console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
