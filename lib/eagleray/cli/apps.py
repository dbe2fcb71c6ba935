"""`eagleray apps …`: manages applications, the callers of the service: keys, quotas and pins."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagleray.cli.common import JsonOption, ModelName
from eagleray.cli.console import Console, command_errors
from eagleray.core.errors import InputError
from eagleray.core.settings import Settings, read_settings

if TYPE_CHECKING:  # it takes a second to import
    from eagleray.serving.callers.applications import Applications, NewKey
    from eagleray.serving.callers.roles import Roles
    from eagleray.serving.callers.usage import UsageStore, VersionUsage

__all__ = ["apps_app"]

apps_app = typer.Typer(
    help="Callers of the service: keys, quotas, and the versions they are pinned to.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Name of the application.")]
Quota = Annotated[
    float | None, typer.Option("--images-per-second", help="Maximum rate; default: no limit.")
]


def _open(settings: Settings | None = None) -> Applications:
    from eagleray.database.store import open_database
    from eagleray.serving.callers.applications import Applications

    settings = settings or read_settings()
    return Applications(open_database(settings), actor=settings.actor)


def _open_roles() -> Roles:
    from eagleray.database.store import open_database
    from eagleray.serving.callers.roles import Roles

    settings = read_settings()
    return Roles(open_database(settings), actor=settings.actor)


def _open_usage() -> UsageStore:
    from eagleray.database.store import open_database
    from eagleray.serving.callers.usage import UsageStore

    return UsageStore(open_database(read_settings()))


def _show_key(console: Console, made: NewKey, json_output: bool) -> None:
    if json_output:
        console.emit({"application": made.application, "key": made.key})
        return
    console.say(made.key)
    console.note(
        "This is the only time that the key is shown; the database keeps its digest. A running "
        "service accepts it within seconds."
    )


@apps_app.command("create")
def create_application(name: Name, quota: Quota = None, json_output: JsonOption = False) -> None:
    """Create an application and print its first key."""
    with command_errors():
        applications = _open()
        first = not applications.names()
        made = applications.create(name, images_per_second=quota)
        console = Console(json_output=json_output)
        _show_key(console, made, json_output)
        if first and not json_output:
            console.note("A service that runs without keys requires them within seconds.")


@apps_app.command("rotate")
def rotate_key(
    name: Name,
    keep_old: Annotated[
        float, typer.Option("--keep-old", help="Hours for which the older keys stay valid.")
    ] = 24.0,
    json_output: JsonOption = False,
) -> None:
    """Print a new key; the older ones expire after --keep-old hours."""
    with command_errors():
        made = _open().rotate(name, keep_old=timedelta(hours=max(0.0, keep_old)))
        _show_key(Console(json_output=json_output), made, json_output)


@apps_app.command("revoke")
def revoke_key(
    name: Name, prefix: Annotated[str, typer.Argument(help="First characters of the key.")]
) -> None:
    """Revoke a key."""
    with command_errors():
        _open().revoke(name, prefix)
        Console().say(f"Key {prefix} of {name} is revoked within seconds.")


@apps_app.command("quota")
def set_quota(name: Name, quota: Quota = None) -> None:
    """Set the quota of an application, in images per second."""
    with command_errors():
        _open().set_quota(name, quota)
        words = "has no quota" if quota is None else f"may send {quota:g} images per second"
        Console().say(f"{name} {words}.")


@apps_app.command("grant")
def grant_role(
    name: Name,
    role: Annotated[
        str, typer.Argument(metavar="evaluate|train|promote", help="Each includes those before it.")
    ],
    models: Annotated[str, typer.Argument(help="Name of a model, or a pattern such as 'flower*'.")],
) -> None:
    """Let jobs of an application evaluate, train or promote models."""
    from eagleray.core.errors import UnknownNameError
    from eagleray.serving.callers.roles import Role

    with command_errors():
        if role not in list(Role):
            raise UnknownNameError("role", role, list(Role))
        _open_roles().grant(name, Role(role), models)
        Console().say(f"Jobs of {name} may {role} {models}.")


@apps_app.command("withdraw")
def withdraw_role(
    name: Name, models: Annotated[str, typer.Argument(help="Models, as they were granted.")]
) -> None:
    """Take a role of an application away."""
    with command_errors():
        _open_roles().withdraw(name, models)
        Console().say(f"Jobs of {name} may only read {models}.")


@apps_app.command("priority")
def set_priority(
    name: Name, priority: Annotated[int, typer.Argument(help="Highest priority; default: 0.")]
) -> None:
    """Set the highest priority that jobs of an application may ask for."""
    with command_errors():
        _open().set_max_priority(name, priority)
        Console().say(f"Jobs of {name} may have a priority up to {priority}.")


@apps_app.command("disable")
def disable_application(name: Name) -> None:
    """Disable all keys of an application."""
    with command_errors():
        _open().disable(name)
        Console().say(f"{name} is disabled within seconds.")


@apps_app.command("enable")
def enable_application(name: Name) -> None:
    """Enable the keys of an application again."""
    with command_errors():
        _open().disable(name, disabled=False)
        Console().say(f"{name} is enabled within seconds.")


@apps_app.command("delete")
def delete_application(name: Name) -> None:
    """Remove an application with its keys and pins."""
    with command_errors():
        applications = _open()
        applications.delete(name)
        Console().say(f"{name} is deleted.")
        if not applications.names():
            Console().note(
                "It was the last application: a running service refuses every request now."
            )


@apps_app.command("pin")
def pin_application(
    name: Name,
    model: ModelName,
    target: Annotated[str, typer.Argument(help="Version number, or an alias.")],
) -> None:
    """Pin an application to a version, whatever version is in production."""
    from eagleray.registry.registry import Registry

    with command_errors():
        registry = Registry()
        version = (
            registry.get(model, version=int(target))
            if target.isdecimal()
            else registry.get(model, alias=target)
        )
        _open(registry.settings).pin(name, model, target)
        Console().say(f"{name} gets {version.reference} within seconds.")


@apps_app.command("unpin")
def unpin_application(name: Name, model: ModelName) -> None:
    """Route an application to the default version again."""
    with command_errors():
        _open().unpin(name, model)
        Console().say(f"{name} gets the default version of {model} within seconds.")


@apps_app.command("webhook")
def set_webhook(
    name: Name,
    url: Annotated[
        str | None, typer.Argument(help="URL that the service posts to; none with --remove.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Number of objects that is to be told of, such as 'person>10'."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the webhook.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Have the service post to a URL when a prediction exceeds a limit; prints the secret."""
    with command_errors():
        console = Console(json_output=json_output)
        if remove == (url is not None):
            raise InputError("Name either a URL, or --remove.")
        if url is None:
            _open().remove_webhook(name)
            console.say(
                f"The webhook of {name} is removed; a running service stops posting within seconds."
            )
            return
        from eagleray.cli.webhooks import check_labels
        from eagleray.registry.registry import Registry

        applications = _open()
        secret = applications.set_webhook(name, url, limit or ())
        doubts = check_labels(applications.get(name), limit or (), Registry(read_settings()))
        if json_output:
            console.emit({"application": name, "secret": secret, "warnings": doubts})
            return
        for doubt in doubts:
            console.warn(doubt)
        console.say(secret)
        console.note(
            "This is the only time that the secret is shown: it is the key of the HMAC-SHA256 in "
            "the header eagleray-signature. A running service uses the webhook within seconds."
        )


@apps_app.command("list")
def list_applications(json_output: JsonOption = False) -> None:
    """List all applications."""
    with command_errors():
        console, applications = Console(json_output=json_output), _open()
        used = _open_usage().recent()
        entries = [_entry(applications, name, used) for name in applications.names()]
        if json_output:
            console.emit(entries)
            return
        if not entries:
            console.say("There are no applications; `eagleray apps create NAME` creates one.")
            return
        rows = [
            [
                entry["name"],
                "any" if entry["images_per_second"] is None else f"{entry['images_per_second']:g}",
                ", ".join(f"{model} {target}" for model, target in entry["pins"].items()),
                str(sum(key["valid"] for key in entry["keys"])),
                f"{sum(item['last_7_days'] for item in entry['usage']):,}",
                max((item["last"] for item in entry["usage"]), default=""),
                "disabled" if entry["disabled"] else "",
            ]
            for entry in entries
        ]
        columns = ["name", "images/s", "pinned to", "keys", "requests, 7 days", "last", ""]
        console.table("Applications", columns, rows)


@apps_app.command("show")
def show_application(name: Name, json_output: JsonOption = False) -> None:
    """Show an application: its keys, pins, requests and changes."""
    with command_errors():
        console, applications = Console(json_output=json_output), _open()
        entry = _entry(applications, name, _open_usage().recent(application=name))
        changes = applications.changes(name)
        if json_output:
            console.emit({**entry, "changes": [change.as_json() for change in changes]})
            return
        keys = [[key["prefix"] + "…", key["created"], _state(key)] for key in entry["keys"]]
        console.table(f"Keys of {name}", ["key", "created", ""], keys)
        pins = [[model, target] for model, target in entry["pins"].items()]
        if pins:
            console.table("Pinned to", ["model", "target"], pins)
        if entry["webhook"]:
            limits = ", ".join(entry["webhook"]["limits"])
            console.table("Webhook", ["URL", "limits"], [[entry["webhook"]["url"], limits]])
        if entry["roles"]:
            roles = [[models, role] for models, role in entry["roles"].items()]
            console.table("Roles", ["models", "role"], roles)
        requests = [
            [
                f"{item['model']}/{item['version']}",
                f"{item['today']:,}",
                f"{item['last_7_days']:,}",
                item["last"],
            ]
            for item in entry["usage"]
        ]
        if requests:
            console.table("Requests", ["version", "today", "7 days", "last"], requests)
        else:
            console.say("There was no request in the last 7 days.")
        console.table(
            "Changes", ["time", "actor", "change"], [change.as_row() for change in changes]
        )


def _entry(applications: Applications, name: str, used: Sequence[VersionUsage]) -> dict[str, Any]:
    found, now = applications.get(name), datetime.now(UTC)
    return {
        "name": name,
        "images_per_second": found.images_per_second,
        "pins": dict(found.pins),
        "webhook": None
        if found.webhook is None
        else {"url": found.webhook.url, "limits": list(map(str, found.webhook.limits))},
        "roles": {grant.models: grant.role.value for grant in _open_roles().of(name)},
        "max_priority": applications.max_priority(name),
        "disabled": name in applications.disabled(),
        "keys": [
            {
                "prefix": key.prefix,
                "created": f"{key.created:%Y-%m-%d %H:%M}",
                "expires": None if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}",
                "revoked": key.revoked is not None,
                "valid": key.is_valid(now),
            }
            for key in applications.keys(name)
        ],
        "usage": [item.as_json() for item in used if item.application == name],
    }


def _state(key: dict[str, Any]) -> str:
    if key["revoked"]:
        return "revoked"
    if key["expires"] is not None:
        return f"expires {key['expires']}" if key["valid"] else "expired"
    return "valid"
