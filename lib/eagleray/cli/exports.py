"""`eagleray models export`: writes a model's package, or exports it to another runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from eagleray.cli.common import JsonOption, SpecFileOption, require_new
from eagleray.cli.console import Console, command_errors
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.exports.spec import PACKAGE_FORMAT, ExportSpec

if TYPE_CHECKING:  # these take seconds to import
    from eagleray.exports.files import ExportFacts
    from eagleray.registry.references import LoadedModel

__all__ = ["exports_app"]

exports_app = typer.Typer()


@exports_app.command("export")
@with_spec_options(ExportSpec, argument="model")
def export_model(
    fields: dict[str, Any], spec: SpecFileOption = None, json_output: JsonOption = False
) -> None:
    """Export a model to another runtime, if it predicts the same there; or write its package."""
    from eagleray.core.settings import read_settings
    from eagleray.io import storage
    from eagleray.registry.references import load_model

    with command_errors():
        console = Console(json_output=json_output)
        settings = read_settings()
        request = read_spec(ExportSpec, fields, file=spec).with_settings(settings)
        storage.use_s3(request.s3)
        model = load_model(request.model, settings)
        if request.format == PACKAGE_FORMAT:
            _write_package(request, model, console)
            return
        from eagleray.exports.job import open_export, run_export

        settings.make_home()
        facts = run_export(open_export(request, model, settings), console)
        _show(facts, request.output, console)


def _write_package(request: ExportSpec, model: LoadedModel, console: Console) -> None:
    """Write a package into a new folder or under a URI.

    Raises:
        OutputExistsError: If the folder exists.
    """
    from eagleray.models.package import write_package

    require_new(request.output)
    write_package(model.package, request.output)
    if console.for_scripts:
        digest = model.package.digest
        console.emit({"model": request.model, "folder": request.output, "digest": digest})
        return
    console.say(f"{request.model} is written to {request.output}.")


def _show(facts: ExportFacts, output: str, console: Console) -> None:
    from eagleray.exports.files import comparison_rows

    if console.for_scripts:
        console.emit({"folder": output, **facts.as_json()})
        return
    title = f"{facts.reference} for {facts.exporter.title}"
    console.table(title, ["", ""], [list(row) for row in comparison_rows(facts)])
    for note in facts.notes:
        console.note(note)
    if facts.comparison is None:
        console.warn(
            f"{facts.exporter.title} {facts.exporter.cannot_run}: the model was converted and "
            "checked as the table says, and not compared with the original."
        )
    console.say(f"{facts.reference} is written to {output}.")
