"""`eagleray models …` on versions: aliases and their history, comparison, lineage, deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from eagleray.cli.common import AliasOption, ForceOption, JsonOption, ModelName, ReasonOption
from eagleray.cli.console import Console, command_errors
from eagleray.core.display import escape_text
from eagleray.core.errors import InputError

if TYPE_CHECKING:  # these take seconds to import
    from eagleray.evaluation.bootstrap import Difference
    from eagleray.registry.alias_history import AliasChange
    from eagleray.registry.comparison import Comparison, MetricRow
    from eagleray.registry.lineage import ImageUse

__all__ = ["versions_app"]

versions_app = typer.Typer()

_ON_THE_SAME_IMAGES = (
    "evaluate each on the same images, which none was trained on (eagleray evaluate MODEL DATA), "
    "or train with the same --seed, --split-file or --test-data."
)

Number = Annotated[int, typer.Argument(metavar="VERSION", help="Number of the version.")]
Version = Annotated[str, typer.Argument(metavar="MODEL", help="NAME/VERSION or NAME@ALIAS.")]


@versions_app.command("promote")
def promote_version(
    name: ModelName,
    version: Number,
    alias: AliasOption = "production",
    kpi: Annotated[
        str | None, typer.Option(help="File of KPIs, such as `recall[defect] >= 0.99`.")
    ] = None,
    reason: ReasonOption = "",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Promote whatever the metrics are, and a model of another task, labels or input "
            "too; needs --reason.",
        ),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Point an alias to a version that passes its KPIs and its golden images."""
    from eagleray.evaluation.kpi import read_kpis
    from eagleray.registry.promotion import promote
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        kpis = None if kpi is None else read_kpis(kpi)
        promotion = promote(
            Registry(), name, version, alias=alias, kpis=kpis, reason=reason, force=force
        )
        if json_output:
            console.emit(promotion.change.as_json())
            return
        for result in promotion.kpi_results:
            console.say(str(result))
        console.say(_moved(promotion.change))


@versions_app.command("rollback")
def roll_back(
    name: ModelName,
    alias: AliasOption = "production",
    reason: ReasonOption = "",
    json_output: JsonOption = False,
) -> None:
    """Point an alias back to its previous version; once more goes back further."""
    from eagleray.registry.promotion import rollback
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        change = rollback(Registry(), name, alias=alias, reason=reason)
        if json_output:
            console.emit(change.as_json())
            return
        console.say(_moved(change))


@versions_app.command("alias")
def set_alias(
    name: ModelName,
    alias: Annotated[str, typer.Argument(help="Alias, such as staging.")],
    version: Number,
    reason: ReasonOption = "",
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Point an alias to a version without checking KPIs; the history records it too."""
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        change = Registry().set_alias(name, alias, version, reason=reason, force=force)
        if json_output:
            console.emit(change.as_json())
            return
        console.say(_moved(change))


@versions_app.command("history")
def show_history(
    name: ModelName,
    alias: Annotated[str | None, typer.Option(help="Show only this alias.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Show who moved which alias of a model, when and why."""
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        registry = Registry()
        registry.versions(name)
        changes = sorted(registry.history.changes(name, alias), key=lambda change: change.time)
        for stray, (said, found) in registry.history.alias_mismatches(name).items():
            if alias in (None, stray):
                now = "nothing" if found is None else f"{name}/{found}"
                console.warn(
                    f"{name}@{stray} points to {now}, the history says {name}/{said}: it was moved "
                    "in MLflow itself."
                )
        if json_output:
            console.emit([change.as_json() for change in changes])
            return
        if not changes:
            console.say(f"Nothing has moved an alias of {name} yet.")
            return
        columns = ["alias", "number", "action", "from", "to", "actor", "time", "reason"]
        console.table(f"History of {name}", columns, [_history_row(change) for change in changes])


@versions_app.command("compare")
def compare_versions(
    first: Version,
    others: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Versions to compare with the first.")
    ],
    json_output: JsonOption = False,
) -> None:
    """Compare versions with the first: metrics with intervals of the difference, settings, data."""
    from eagleray.registry.comparison import ComparedVersion, compare
    from eagleray.registry.references import require_version
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        registry = Registry()
        versions = [require_version(name, registry) for name in (first, *others)]
        comparison = compare(registry, [ComparedVersion.read(registry, one) for one in versions])
        if json_output:
            console.emit(comparison.as_json())
            return
        _show_comparison(comparison, console)


@versions_app.command("lineage")
def show_lineage(version: Version, json_output: JsonOption = False) -> None:
    """Show where a version comes from: data, split, test set, parent, specification, run."""
    from eagleray.registry.lineage import trace_lineage
    from eagleray.registry.references import require_version
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        registry = Registry()
        origin = asdict(trace_lineage(registry, require_version(version, registry)))
        if json_output:
            console.emit(origin)
            return
        facts = {
            key.replace("_", " "): value
            for key, value in origin.items()
            if value and key != "version"
        }
        console.facts(f"Lineage of {origin['version']}", facts)


@versions_app.command("trained-on")
def show_trained_on(
    file: Annotated[str, typer.Argument(help="Path or URI of an image.")],
    json_output: JsonOption = False,
) -> None:
    """Show which versions an image was given to, and in which split: train, validation or test."""
    from eagleray.registry.lineage import find_image_uses
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        found = find_image_uses(Registry(), file)
        if json_output:
            console.emit(asdict(found))
            return
        if found.uses:
            columns = ["model", "split", "label", "image"]
            console.table(found.uri, columns, [_use_row(use) for use in found.uses])
        else:
            console.say(f"No version is known to have been given {found.uri}.")
        if found.unknown:
            console.say(
                f"Unknown, as their runs kept no table of images: {', '.join(found.unknown)}."
            )


@versions_app.command("delete")
def delete_version(
    name: ModelName,
    version: Number,
    reason: ReasonOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Delete a version that no alias points to, with its files; the history keeps a record."""
    from eagleray.registry.registry import Registry

    with command_errors():
        console = Console(json_output=json_output)
        registry = Registry()
        found = registry.get(name, version=version)
        registry.require_unused(found)
        if not yes:
            if not console.can_ask:
                raise InputError(
                    f"There is no terminal to confirm on; delete {found.reference} by --yes."
                )
            if not typer.confirm(escape_text(f"Delete {found.reference} and its files for good?")):
                console.say(f"{found.reference} is kept.")
                return
        change = registry.delete(name, version, reason=reason)
        if json_output:
            console.emit(change.as_json())
            return
        files = change.evidence["files"]
        console.say(
            f"{found.reference} is deleted"
            + (", and its package with it." if files else f"; its files stay at {found.source}.")
        )


def _moved(change: AliasChange) -> str:
    now = f"{change.model}@{change.alias} is now {change.model}/{change.version}"
    if change.previous is None:
        return f"{now}, and was unset before (change {change.number})."
    return f"{now}, after {change.model}/{change.previous} (change {change.number})."


def _history_row(change: AliasChange) -> list[str]:
    action = change.action + (" (forced)" if change.evidence.get("forced") else "")
    return [
        change.alias or "-",
        str(change.number),
        action if change.applied else f"{action}, not completed",
        "-" if change.previous is None else str(change.previous),
        "-" if change.action == "delete" else str(change.version),
        change.actor,
        f"{change.time:%Y-%m-%d %H:%M UTC}",
        change.reason,
    ]


def _use_row(use: ImageUse) -> list[str]:
    state = {None: "", False: "as it was then", True: "changed since"}[use.changed]
    return [use.version, use.split, use.label, state]


def _show_comparison(comparison: Comparison, console: Console) -> None:
    names = comparison.references
    against = [f"{name} - {names[0]}" for name in names[1:]] if len(names) > 2 else ["difference"]
    rows = [_metric_row(row) for row in comparison.metrics]
    console.table(_title(comparison), ["metric", *names, *against], rows)
    console.table("Cost", ["", *names], [_cost_row(*item) for item in comparison.costs.items()])
    has_intervals = any(
        one and one.interval for row in comparison.metrics for one in row.differences
    )
    if has_intervals:
        console.say(
            "In brackets: the 95 % interval of the difference, and the p-value of there being none "
            "(paired bootstrap, 1,000 resamples of the images)."
        )
    for sentence in comparison.leakage:
        console.warn(sentence)
    if comparison.leakage:
        console.warn(f"For a fair comparison, {_ON_THE_SAME_IMAGES}")
    if not comparison.same_images:
        console.warn(
            "The metrics are not comparable: they were measured on different images; "
            f"{_ON_THE_SAME_IMAGES}"
            if comparison.same_images is False
            else "It is unknown whether these metrics were measured on the same images; "
            f"{_ON_THE_SAME_IMAGES}"
        )
    fields = [
        [name, *(str(value) if value is not None else "-" for value in values)]
        for name, values in comparison.hyperparameters.items()
    ]
    if fields:
        console.table("Specifications", ["", *names], fields)
    facts = [
        [name, *(_short(value) for value in values), "" if len(set(values)) == 1 else "differs"]
        for name, values in _facts_by_name(comparison).items()
    ]
    console.table("Facts", ["", *names, ""], facts)


def _facts_by_name(comparison: Comparison) -> dict[str, list[str | None]]:
    facts = [side.facts for side in comparison.versions]
    return {name: [one[name] for one in facts] for name in facts[0]}


def _title(comparison: Comparison) -> str:
    if comparison.measured_on:
        return f"Measured on the same images: {comparison.measured_on}"
    return "Measured on the same test set" if comparison.same_images else "As registered"


def _metric_row(row: MetricRow) -> list[str]:
    differences = ["" if one is None else _difference(one) for one in row.differences]
    return [row.metric, *(_figure(value) for value in row.values), *differences]


def _cost_row(name: str, values: Sequence[int | None]) -> list[str]:
    """Return a row of counts, with the change from the first version."""
    first = values[0]
    cells = ["-" if value is None else f"{value:,}" for value in values]
    for place, value in enumerate(values):
        if place and first and value is not None and value != first:
            cells[place] += f" ({value / first - 1:+.1%})"
    return [name.replace("_", " "), *cells]


def _difference(found: Difference) -> str:
    if found.interval is None or found.p_value is None:
        return f"{found.value:+.4f}"
    low, high = found.interval.low, found.interval.high
    return f"{found.value:+.4f} [{low:+.4f} to {high:+.4f}, p {found.p_value:.3f}]"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(value: str | None) -> str:
    """Shorten a digest to its first characters."""
    if value is None:
        return "-"
    is_digest = len(value) == 64 and not value.strip("0123456789abcdef")
    return value[:12] if is_digest else value
