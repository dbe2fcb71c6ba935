"""`eagleray models import`: makes a model of another program's network, or of a server's."""

from __future__ import annotations

from typing import Any

import typer

from eagleray.cli.common import JsonOption, SpecFileOption, require_new
from eagleray.cli.console import Console, command_errors
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.importing.spec import ImportSpec

__all__ = ["imports_app"]

imports_app = typer.Typer()


@imports_app.command("import")
@with_spec_options(ImportSpec, argument="file")
def import_model(
    fields: dict[str, Any], spec: SpecFileOption = None, json_output: JsonOption = False
) -> None:
    """Import a network from an ONNX file, a folder of transformers or a server, and register it.

    With --output its package is written instead. A file is checked before anything runs it, and
    first run in a process with bounds. A model that another server runs stays there:
    EAGLERAY_HOSTED_MODELS lists the hosts that may be asked.
    """
    with command_errors():
        console = Console(json_output=json_output)
        from eagleray.core.settings import read_settings
        from eagleray.importing.hosted import import_hosted, is_hosted
        from eagleray.importing.job import import_network
        from eagleray.io import storage
        from eagleray.models.package import write_package
        from eagleray.registry.registry import Registry

        settings = read_settings()
        settings.make_home()
        request = read_spec(ImportSpec, fields, file=spec).with_settings(settings)
        storage.use_s3(request.s3)
        if request.output is not None:
            require_new(request.output)
        with console.status("Importing"):
            if is_hosted(request.file):
                package = import_hosted(request, settings)
            else:
                package = import_network(request, settings, note=console.note)
        if request.output is not None:
            write_package(package, request.output)
            where = request.output
        else:
            version = Registry(settings).register(package, alias=request.alias)
            where = version.reference
        if json_output:
            console.emit({"model": where, "digest": package.digest, "name": request.name})
            return
        console.facts(
            f"{request.name}, imported from {request.file}",
            {
                "task": package.task.name,
                **package.manifest.facts,
                "input": package.manifest.input_text,
                "golden images": len(package.golden.images),
            },
        )
        verb = "written to" if request.output is not None else "registered as"
        console.say(f"{request.name} is {verb} {where}.")
