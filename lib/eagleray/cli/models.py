"""`eagleray models …`: lists, shows, verifies, registers and exports models.

`versions.py` has the commands that change and compare versions, `routes.py` those of the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eagleray.cli.common import JsonOption, ModelReference
from eagleray.cli.console import Console, command_errors
from eagleray.cli.routes import routes_app
from eagleray.cli.versions import versions_app
from eagleray.core.errors import InputError, PackageError

__all__ = ["models_app"]

models_app = typer.Typer(
    help="Models and their versions: list, compare, promote, roll back, trace.\n\n"
    "eagleray models list\n\n"
    "eagleray models show digits@production\n\n"
    "eagleray models compare digits/2 digits/3\n\n"
    "eagleray models promote digits 3 --alias production --kpi kpi.txt\n\n"
    "eagleray models rollback digits --alias production\n\n"
    "eagleray models history digits\n\n"
    "eagleray models architectures resnet",
    no_args_is_help=True,
)
models_app.add_typer(versions_app)
models_app.add_typer(routes_app)


@models_app.command("list")
def list_models(
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Show all versions of this model.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List the registered models, or the versions of one."""
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        registry = Registry()
        shown = registry.latest_versions() if name is None else registry.versions(name)
        if json_output:
            console.emit([_version_facts(version) for version in shown])
            return
        if not shown:
            console.say("No model is registered yet: `eagleray train` registers one.")
            return
        rows = [
            [
                version.reference,
                ", ".join(version.aliases),
                version.architecture,
                version.task,
                _metric_lines(version.metrics),
                _date(version.created).split()[0],
            ]
            for version in shown
        ]
        title = f"Versions of {name}" if name else "Newest version of each model"
        columns = ["model", "aliases", "architecture", "task", "metrics", "created"]
        console.table(title, columns, rows)


@models_app.command("show")
def show_model(model: ModelReference, json_output: JsonOption = False) -> None:
    """Describe a model: task, labels, contract, metrics, lineage."""
    from eagleray.registry.references import load_model

    with command_errors():
        console = Console(json_output=json_output)
        loaded = load_model(model)
        manifest = loaded.package.manifest
        if json_output:
            console.emit(
                {
                    "reference": model,
                    "version": loaded.version,
                    "digest": loaded.package.digest,
                    **manifest.model_dump(mode="json"),
                }
            )
            return
        labels = manifest.task.labels
        facts: dict[str, object] = {
            "task": manifest.task.name,
            "architecture": manifest.architecture.name,
            "labels": f"{len(labels):,}: {', '.join(labels[:12])}"
            + (", …" if len(labels) > 12 else ""),
            "input": " x ".join(str(side) for side in manifest.contract.shape),
            "contract": f"{manifest.contract_digest[:12]}  {manifest.contract.to_json()}",
            "package digest": loaded.package.digest,
            "weights": f"{len(loaded.package.files['model.safetensors']):,} bytes",
            "golden images": len(loaded.package.golden.images),
        }
        if manifest.attributes:
            facts["attributes"] = "; ".join(one.describe for one in manifest.attributes)
        facts |= {name: f"{value:.4f}" for name, value in sorted(manifest.metrics.items())}
        facts |= {
            name: value
            for name, value in manifest.lineage.model_dump().items()
            if value not in (None, "")
        }
        console.facts(f"{manifest.name} {loaded.version}".strip(), facts)


@models_app.command("verify")
def verify_model(model: ModelReference, json_output: JsonOption = False) -> None:
    """Check an untrusted package: files, limits, digests, weights, golden images.

    Every check is reported; the exit code is 2 if one fails. A package is read only as far as its
    checks pass.
    """
    from eagleray.registry.references import verify_model as verify

    with command_errors():
        console = Console(json_output=json_output)
        report = verify(model)
        if json_output:
            console.emit({"reference": model, **report.as_json()})
        else:
            signs = {True: "ok", False: "FAILED", None: "-"}
            rows = [[check.name, signs[check.passed], check.detail] for check in report.checks]
            console.table(f"Checks of {model}", ["check", "", "found"], rows)
            if report.passed:
                console.say(f"{model} is intact (package {(report.digest or '')[:12]}).")
        if report.faults:
            others = len(report.faults) - 1
            more = f" ({others} more)" if others else ""
            raise PackageError(f"{report.faults[0]}{more}")


@models_app.command("register")
def register_model(
    model: ModelReference,
    alias: Annotated[str | None, typer.Option(help="Alias that points to the new version.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Register a package as the next version of the model that it names."""
    from eagleray.registry.references import load_model
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        loaded = load_model(model)
        loaded.package.require_weights()  # a version without weights could not be loaded
        version = Registry().register(loaded.package, alias=alias)
        if json_output:
            console.emit(_version_facts(version))
            return
        console.say(f"{model} is registered as {version.reference}.")


@models_app.command("export")
def export_model(
    model: ModelReference,
    folder: Annotated[str, typer.Argument(help="New folder or URI.")],
    json_output: JsonOption = False,
) -> None:
    """Write a model's package into a folder or under a URI."""
    from eagleray.core.errors import OutputExistsError
    from eagleray.io import storage
    from eagleray.models.package import write_package
    from eagleray.registry.references import load_model

    with command_errors():
        if storage.exists(folder):
            raise OutputExistsError(f"{folder} exists already; name a folder that is new.")
        package = load_model(model).package
        write_package(package, folder)
        console = Console(json_output=json_output)
        if json_output:
            console.emit({"model": model, "folder": folder, "digest": package.digest})
            return
        console.say(f"{model} is written to {folder}.")


@models_app.command("architectures")
def list_architectures(
    part: Annotated[str, typer.Argument(help="Show only names that contain this text.")] = "",
    json_output: JsonOption = False,
) -> None:
    """List the architectures that can be trained."""
    from eagleray.models.architectures import architecture_names

    with command_errors():
        console = Console(json_output=json_output)
        names = [name for name in architecture_names() if part in name]
        if not names:
            raise InputError(f"No architecture has {part!r} in its name.")
        if json_output:
            console.emit(names)
            return
        for name in names:
            console.say(name)


def _version_facts(version: Any) -> dict[str, object]:
    return {
        "model": version.reference,
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "created": _date(version.created),
        "digest": version.digest,
        "task": version.task,
        "architecture": version.architecture,
        "metrics": dict(version.metrics),
        "run": version.run_id,
        "source": version.source,
    }


def _metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """Return a line for each metric, short enough for a column."""
    return [f"{name.removeprefix('test_')} {value:.4f}" for name, value in sorted(metrics.items())]


def _date(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
