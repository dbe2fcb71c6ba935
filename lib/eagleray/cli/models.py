"""`eagleray models …`: lists, shows, verifies and registers models.

`versions.py` has the commands that change and compare versions, `routes.py` those of the service,
`exports.py` the export, `imports.py` the import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from eagleray.cli.common import ForceOption, JsonOption, ModelReference
from eagleray.cli.console import Console, command_errors
from eagleray.cli.exports import exports_app
from eagleray.cli.imports import imports_app
from eagleray.cli.outliers import outliers_app
from eagleray.cli.quantize import quantize_app
from eagleray.cli.routes import routes_app
from eagleray.cli.versions import versions_app
from eagleray.core.errors import InputError, PackageError
from eagleray.inference.latency import FRAME_MILLISECONDS, HOSTED, Latency

if TYPE_CHECKING:  # these take seconds to import
    from eagleray.evaluation.record import EvaluationRecord
    from eagleray.models.cost import ModelCost
    from eagleray.models.manifest import ModelManifest
    from eagleray.models.package import ModelPackage
    from eagleray.registry.registry import ModelVersion, Registry

__all__ = ["models_app"]

models_app = typer.Typer(
    help="Models and their versions: list, compare, promote, roll back, trace.\n\n"
    "eagleray models list\n\n"
    "eagleray models show digits@production\n\n"
    "eagleray models compare digits/2 digits/3\n\n"
    "eagleray models promote digits 3 --alias production --kpi kpi.txt\n\n"
    "eagleray models rollback digits --alias production\n\n"
    "eagleray models history digits\n\n"
    "eagleray models quantize digits@production\n\n"
    "eagleray models architectures resnet",
    no_args_is_help=True,
)
models_app.add_typer(exports_app)
models_app.add_typer(imports_app)
models_app.add_typer(versions_app)
models_app.add_typer(quantize_app)
models_app.add_typer(outliers_app)
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
        of_models = registry.aliases()[0] if name is None else {}
        if json_output:
            models = (
                {"model_aliases": of_models.get(one.name, {})} if of_models else {} for one in shown
            )
            facts = _version_facts(registry, shown)
            console.emit([one | other for one, other in zip(facts, models, strict=True)])
            return
        if not shown:
            console.say("No model is registered yet: `eagleray train` registers one.")
            return
        rows = [
            [
                version.reference,
                _versions_of_aliases(of_models.get(version.name, {}))
                if of_models
                else ", ".join(version.aliases),
                _headline_metric(version) + ", did not learn" * bool(version.did_not_learn),
                version.task,
                version.architecture + f", {version.precision}" * bool(version.precision),
                _date(version.created).split()[0],
            ]
            for version in shown
        ]
        title = f"Versions of {name}" if name else "Newest version of each model"
        aliases = "aliases" if name else "aliases of the model"
        columns = ["model", aliases, "test metric", "task", "architecture", "created"]
        console.table(title, columns, rows)


@models_app.command("show")
def show_model(model: ModelReference, json_output: JsonOption = False) -> None:
    """Describe a model: task, labels, thresholds, input, metrics, evaluations, lineage."""
    from eagleray.models.cost import manifest_cost
    from eagleray.registry.lineage import find_run_name, reference_of
    from eagleray.registry.references import load_model
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        loaded = load_model(model)
        registry = Registry() if loaded.version else None
        version = registry.get(loaded.name, version=int(loaded.version)) if registry else None
        evaluations = registry.evaluations(version) if registry and version else []
        run = find_run_name(registry, version) if registry and version else None
        manifest = loaded.package.manifest
        cost = manifest_cost(manifest)
        did_not_learn = version.did_not_learn if version else ()
        latencies = version.latencies if version else ()
        if json_output:
            console.emit(
                {
                    "reference": model,
                    "version": loaded.version,
                    "aliases": list(version.aliases) if version else [],
                    "run": run,
                    "mlflow_run": version.run_id if version else None,
                    "digest": loaded.package.digest,
                    "settings": manifest.task.settings(),
                    "latencies": [one.model_dump(mode="json") for one in latencies],
                    "did_not_learn": list(did_not_learn),
                    "cost": asdict(cost),
                    "evaluations": [
                        {**record.model_dump(mode="json"), "counts": record.counts}
                        for record in evaluations
                    ],
                    **manifest.model_dump(mode="json"),
                }
            )
            return
        for reason in did_not_learn:
            console.warn(f"did not learn: {reason}")
        facts: dict[str, object] = {
            **({"aliases": ", ".join(version.aliases) or "none"} if version else {}),
            "task": manifest.task.name,
            **manifest.task.settings(),
            "architecture": manifest.architecture.title,
            **_cost_facts(manifest, cost),
            **manifest.facts,
            "input": manifest.input_text,
            "contract": f"{manifest.contract_digest[:12]}  {manifest.contract.to_json()}",
            "package digest": loaded.package.digest,
            **_network_facts(loaded.package),
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
        if registry is not None and manifest.lineage.parent is not None:
            facts["parent"] = reference_of(registry, manifest.lineage.parent)
        if run is not None and version is not None:
            facts["run"] = f"{run} (MLflow run {version.run_id})"
        console.facts(f"{manifest.name} {loaded.version}".strip(), facts)
        if latencies:
            rows = [_latency_row(latency) for latency in latencies]
            console.table("Speed, decoding included", _LATENCY_COLUMNS, rows)
        if evaluations:
            rows = [_evaluation_row(record, manifest.task.metric_names) for record in evaluations]
            console.table("Evaluations", ["data", "images", "metrics", "", "measured"], rows)


@models_app.command("measure")
def measure_model(
    model: ModelReference,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="Engine: auto, eager or openvino; auto: the fastest one here.")
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds of single images, and of batches.")
    ] = 5.0,
    budget_ms: Annotated[
        float, typer.Option(min=0.01, help="Milliseconds that an image may take.")
    ] = 33.3,
    json_output: JsonOption = False,
) -> None:
    """Measure how fast a version predicts on this machine, and keep the result with it."""
    from eagleray.inference.latency import measure_latency
    from eagleray.registry.references import load_model
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        loaded = load_model(model)
        latency = measure_latency(loaded.package, device=device, engine=engine, seconds=seconds)
        if loaded.version:
            registry = Registry()
            registry.record_latency(registry.get(loaded.name, version=int(loaded.version)), latency)
        keeps = latency.keeps(budget_ms)
        if json_output:
            facts = {"model": model, "budget_ms": budget_ms, "keeps_budget": keeps}
            console.emit({**facts, **latency.model_dump(mode="json")})
            return
        console.table(f"Speed of {model}", _LATENCY_COLUMNS, [_latency_row(latency)])
        if latency.engine == HOSTED:
            console.note("Another server runs the model: the times are those of its responses.")
        verdict = "keeps" if keeps else "does not keep"
        console.say(f"{model} {verdict} {budget_ms:g} ms an image on this machine.")


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
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Register a package as the next version of the model that it names."""
    from eagleray.registry.references import load_model
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        loaded = load_model(model)
        loaded.package.require_weights()  # a version without weights could not be loaded
        registry = Registry()
        version = registry.register(loaded.package, alias=alias, force=force)
        if json_output:
            (facts,) = _version_facts(registry, [version])
            console.emit(facts)
            return
        console.say(f"{model} is registered as {version.reference}.")


@models_app.command("architectures")
def list_architectures(
    part: Annotated[str, typer.Argument(help="Show only names that contain this text.")] = "",
    json_output: JsonOption = False,
) -> None:
    """List the architectures: networks that are trained, or predict with published weights."""
    from eagleray.models.architectures import architecture_names
    from eagleray.models.compositions import composition_prefixes

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
        prefixes = ", ".join(f"{prefix}/" for prefix in composition_prefixes())
        console.note(f"Networks that say where things are: {prefixes} before a convolutional one.")


def _version_facts(registry: Registry, versions: Sequence[ModelVersion]) -> list[dict[str, object]]:
    """Return what is listed of versions, for scripts."""
    from eagleray.registry.lineage import find_run_names

    return [
        {
            "model": version.reference,
            "name": version.name,
            "version": version.version,
            "aliases": list(version.aliases),
            "created": _date(version.created),
            "digest": version.digest,
            "task": version.task,
            "architecture": version.architecture,
            "precision": version.precision,
            "metrics": dict(version.metrics),
            "did_not_learn": list(version.did_not_learn),
            "run": run,
            "mlflow_run": version.run_id,
            "source": version.source,
        }
        for version, run in zip(versions, find_run_names(registry, versions), strict=True)
    ]


def _cost_facts(manifest: ModelManifest, cost: ModelCost) -> dict[str, str]:
    """Return what a network costs; what another server runs is not known."""
    if manifest.hosted is not None:
        return {"multiply-adds and parameters": "unknown, as another server runs the model"}
    multiply_adds = "unknown" if cost.multiply_adds is None else f"{cost.multiply_adds:,} an image"
    return {"multiply-adds": multiply_adds, "parameters": f"{cost.parameters:,}"}


def _network_facts(package: ModelPackage) -> dict[str, str]:
    """Return the size of the file with the network, if the package has one."""
    if package.manifest.hosted is not None:
        return {}
    return {"network": f"{len(package.files[package.manifest.network_file]):,} bytes"}


_LATENCY_COLUMNS = [
    "machine", "cores", "engine", "p50", "p95", "33 ms a frame", "images/s", "memory",
]  # fmt: skip


def _latency_row(latency: Latency) -> list[str]:
    return [
        latency.machine,
        str(latency.num_cores),
        "another server" if latency.engine == HOSTED else f"{latency.engine} {latency.precision}",
        f"{latency.p50:.1f} ms",
        f"{latency.p95:.1f} ms",
        "kept" if latency.keeps(FRAME_MILLISECONDS) else "missed",
        f"{latency.images_per_second:,.1f} in batches of {latency.best_batch}",
        f"{latency.memory_bytes / 1e6:,.0f} MB",
    ]


def _versions_of_aliases(aliases: Mapping[str, int]) -> str:
    """Describe the aliases of a model, which may all point to older versions than the newest."""
    pairs = sorted(aliases.items())
    return ", ".join(f"{alias}: version {number}" for alias, number in pairs)


def _evaluation_row(record: EvaluationRecord, names: Sequence[str]) -> list[str]:
    found = [f"{name} {record.metrics[name]:.4f}" for name in names if name in record.metrics]
    mark = f"does not count: {record.num_leaked:,} images were used to train it"
    return [
        f"{record.data}, in tiles: {record.tiles}" if record.tiles else record.data,
        f"{record.num_images:,}",
        ", ".join(found),
        "" if record.counts else mark,
        record.created,
    ]


def _headline_metric(version: ModelVersion) -> str:
    """Return the first of the task's metrics that the version was registered with."""
    from eagleray.tasks import task_class, task_names

    names = task_class(version.task).metric_names if version.task in task_names() else ()
    keys = [f"test_{name}" for name in names] + sorted(version.metrics)
    key = next((key for key in keys if key in version.metrics), None)
    return "" if key is None else f"{key.removeprefix('test_')} {version.metrics[key]:.4f}"


def _date(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
