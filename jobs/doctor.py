"""Check that this machine, or every node of a cluster, reaches what jobs need.

    python -m eagleray.jobs.doctor
    eagleray doctor
    eagleray doctor --output s3://results/ --cluster gpus

The file reads from top to bottom: parse, run, report.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import asdict
from typing import Annotated

import typer

from eagleray.cli.common import ClusterOption, JsonOption, VerboseOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.clusters.checks import Finding, check_node, probing
from eagleray.clusters.examine import examine_nodes
from eagleray.core.errors import UserError
from eagleray.core.spec import Names
from eagleray.io import storage
from eagleray.io.spec_fields import S3Fields


def show(findings: list[Finding], console: Console) -> None:
    """Report every check.

    Raises:
        UserError: If one failed.
    """
    faults = [finding for finding in findings if finding.fault]
    if console.for_scripts:
        console.emit({"faults": len(faults), "checks": [asdict(each) for each in findings]})
    else:
        rows = [
            [each.node, each.check, "fault" if each.fault else "ok", each.fault or each.detail]
            for each in findings
        ]
        console.table("Checks", ["node", "check", "", "found"], rows)
    if faults:
        raise UserError(
            f"{len(faults)} of {len(findings)} checks failed; the first: {faults[0].fault}"
        )


def main(
    output: Annotated[
        str | None,
        typer.Option(help="Folder or URI where results will go, to check as well."),
        Names.OUTPUT,
    ] = None,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check versions, registry, database, storage, token, GPUs and clocks."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        storage.use_s3(S3Fields().with_settings(settings).s3)
        with contextlib.ExitStack() as stack:
            address, shared = cluster or settings.ray_address, False
            if address is not None:
                session = job_session(settings, address=address, verbose=verbose)
                shared = stack.enter_context(session).num_nodes > 1
            context, written = stack.enter_context(probing(settings, output, shared=shared))
            if address is not None:
                found = examine_nodes(context)
            else:
                found = check_node(context, settings, socket.gethostname())
        show([*written, *found], console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
