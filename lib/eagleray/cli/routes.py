"""`eagleray models …` on the service: canary, shadow, warm models, and the traffic of versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagleray.cli.common import JsonOption, ModelName, OffOption
from eagleray.cli.console import Console, command_errors
from eagleray.core.errors import InputError

if TYPE_CHECKING:  # these take seconds to import
    from eagleray.registry.registry import Registry
    from eagleray.serving.versions.routes import Routes
    from eagleray.serving.versions.routing import Route

__all__ = ["routes_app"]

routes_app = typer.Typer()

Share = Annotated[float, typer.Option(help="Share of the requests, from 0 to 1.")]
Target = Annotated[str | None, typer.Argument(help="Version number, or an alias.")]


def _open(registry: Registry) -> Routes:
    from eagleray.serving.versions.routes import Routes

    return Routes(registry.history.database, actor=registry.settings.actor)


def _require_target(registry: Registry, name: str, target: str) -> None:
    if target.isdecimal():
        registry.get(name, version=int(target))
    else:
        registry.get(name, alias=target)


@routes_app.command("canary")
def set_canary(
    name: ModelName,
    target: Target = None,
    share: Share = 0.05,
    off: OffOption = False,
) -> None:
    """Send a share of the requests that name no version to a canary version."""
    _set_traffic("canary", name, target, share, off)


@routes_app.command("shadow")
def set_shadow(
    name: ModelName,
    target: Target = None,
    share: Share = 1.0,
    off: OffOption = False,
) -> None:
    """Send a copy of a share of the requests to a shadow version, to compare its predictions."""
    _set_traffic("shadow", name, target, share, off)


def _set_traffic(kind: str, name: str, target: str | None, share: float, off: bool) -> None:
    from eagleray.registry.registry import Registry

    with command_errors():
        if (target is None) != off:
            raise InputError(f"Name the version for the {kind}, or write --off.")
        registry = Registry()
        registry.versions(name)
        if target is not None:
            _require_target(registry, name, target)
        changes: dict[str, Any] = {kind: target, f"{kind}_share": 0.0 if off else share}
        _open(registry).set(name, **changes)
        words = "ends" if off else f"is {name} {target} for {share:.1%} of its requests"
        Console().say(f"The {kind} of {name} {words} within seconds.")


@routes_app.command("warm")
def keep_warm(name: ModelName, off: OffOption = False) -> None:
    """Keep the versions of a model in memory, also while no request uses them."""
    from eagleray.registry.registry import Registry

    with command_errors():
        registry = Registry()
        registry.versions(name)
        _open(registry).set(name, warm=not off)
        Console().say(f"{name} is {'loaded on its first request' if off else 'kept in memory'}.")


@routes_app.command("traffic")
def show_traffic(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="NAME or NAME/VERSION.")],
    version: Annotated[int | None, typer.Option(help="Show only this version.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Show which callers are routed to which version, their requests, and changes of routes."""
    from eagleray.registry.registry import Registry
    from eagleray.serving.callers.usage import UsageStore
    from eagleray.serving.watch import read_snapshot

    with command_errors():
        console, registry = Console(json_output=json_output), Registry()
        name, version = _model_and_version(name, version)
        snapshot = read_snapshot(registry)
        snapshot.require_model(name)
        found = [use for use in _uses(snapshot, name) if version in (None, use["version"])]
        used = UsageStore(registry.history.database).recent(model=name)
        seen = [item.as_json() for item in used if version in (None, item.version)]
        changes = _open(registry).changes(name)
        if json_output:
            listed = [change.as_json() for change in changes]
            console.emit({"routes": found, "requests": seen, "changes": listed})
            return
        which = name if version is None else f"{name}/{version}"
        if found:
            rows = [[str(use["version"]), use["caller"], use["by"]] for use in found]
            console.table(f"Routes to {which}", ["version", "caller", "by"], rows)
        else:
            console.say(f"No route leads to {which}.")
        _show_requests(console, which, seen)
        if changes:
            rows = [change.as_row() for change in changes]
            console.table(f"Changes of the route of {name}", ["time", "actor", "change"], rows)


def _model_and_version(text: str, version: int | None) -> tuple[str, int | None]:
    """Read NAME or NAME/VERSION.

    Raises:
        InputError: If the version is not a number, or is named twice.
    """
    name, slash, number = text.partition("/")
    if not slash:
        return name, version
    if not number.isdecimal() or version not in (None, int(number)):
        raise InputError(f"{text!r} is not a model or a version; write NAME or NAME/VERSION.")
    return name, int(number)


def _show_requests(console: Console, which: str, seen: list[dict[str, Any]]) -> None:
    if not seen:
        console.say(f"There was no request to {which} in the last 7 days.")
        return
    rows = [
        [
            str(item["version"]),
            item["application"] or "without a key",
            f"{item['today']:,}",
            f"{item['last_7_days']:,}",
            item["last"],
        ]
        for item in seen
    ]
    columns = ["version", "application", "today", "7 days", "last"]
    console.table(f"Requests to {which}", columns, rows)


def _uses(snapshot: Any, name: str) -> list[dict[str, Any]]:
    """Return which callers are routed to which version, the newest version first."""
    route: Route = snapshot.route(name)
    pinned = [app for app in snapshot.applications.values() if name in app.pins]
    others = [app.name for app in snapshot.applications.values() if name not in app.pins]
    unpinned = ", ".join(sorted(others)) or "callers without a key"
    uses = [(app.pins[name], app.name, f"pinned to {app.pins[name]}") for app in pinned]
    uses.append((route.default, unpinned, f"default {route.default}"))
    if route.canary is not None and route.canary_share:
        uses.append((route.canary, unpinned, f"canary, {route.canary_share:.1%}"))
    if route.shadow is not None and route.shadow_share:
        uses.append((route.shadow, "comparison only", f"shadow, {route.shadow_share:.1%}"))
    found = [
        {"version": snapshot.version(name, target), "caller": caller, "by": by}
        for target, caller, by in uses
    ]
    return sorted(
        (use for use in found if use["version"] is not None), key=lambda use: -use["version"]
    )
