"""`eagleray cluster …`: names the clusters that commands run on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from eagleray.cli.common import JsonOption, OffOption
from eagleray.cli.console import Console, command_errors
from eagleray.core.errors import InputError
from eagleray.core.settings import read_settings
from eagleray.core.validation import first_validation_error

__all__ = ["cluster_app"]

cluster_app = typer.Typer(
    help="Clusters by name: add, use, list, show, remove.\n\n"
    "eagleray cluster add images https://images.example.com --key-file ~/.eagleray-key\n\n"
    "eagleray cluster add gpus ray-jobs+https://ray.example.com --token-file ~/.ray/gpus\n\n"
    "eagleray cluster use gpus\n\n"
    "eagleray predict s3://photos/ --model flowers@production --output s3://results/ "
    "--cluster gpus",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the cluster.")]


@cluster_app.command("add")
def add(
    name: Name,
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="https://SERVICE with a key, ray-jobs+https://HEAD with the cluster's token; auto "
            "or HOST:PORT on a node of it.",
        ),
    ],
    key_file: Annotated[
        Path | None,
        typer.Option(help="File of the key for a service; default: EAGLERAY_API_KEY."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File of the cluster's token; default: RAY_AUTH_TOKEN."),
    ] = None,
) -> None:
    """Name a cluster, or change what a name means."""
    from eagleray.clusters.profiles import ClusterProfile, ClusterProfiles

    with command_errors():
        settings = read_settings()
        files = {
            option: file.expanduser().absolute()
            for option, file in (("key_file", key_file), ("token_file", token_file))
            if file is not None
        }
        try:
            profile = ClusterProfile(address=address, **files)
        except ValidationError as error:
            raise InputError(f"{first_validation_error(error)}.") from None
        profiles = ClusterProfiles.read(settings).with_profile(name, profile)
        if files:
            profile.secret()
        profiles.write(settings)
        Console().say(f"{name} is {address}; `eagleray cluster show {name}` asks it.")


@cluster_app.command("use")
def use(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the cluster.")] = None,
    off: OffOption = False,
) -> None:
    """Choose the cluster of commands that name none; --off: a Ray of their own."""
    from eagleray.clusters.profiles import ClusterProfiles

    with command_errors():
        if (name is None) != off:
            raise InputError("Name a cluster, or give --off, and not both.")
        settings = read_settings()
        profiles = ClusterProfiles.read(settings)
        if name is not None:
            profiles.get(name)
        profiles.model_copy(update={"used": name}).write(settings)
        Console().say(
            "Commands that name no cluster run on "
            + (f"{name}." if name is not None else "a Ray of their own.")
        )


@cluster_app.command("list")
def list_all(json_output: JsonOption = False) -> None:
    """List the clusters."""
    from eagleray.clusters.profiles import ClusterProfiles

    with command_errors():
        console = Console(json_output=json_output)
        profiles = ClusterProfiles.read(read_settings())
        if json_output:
            console.emit(profiles.model_dump(mode="json"))
            return
        rows = [
            [
                name,
                profile.address,
                str(profile.key_file or profile.token_file or ""),
                "yes" * (name == profiles.used),
            ]
            for name, profile in profiles.profiles.items()
        ]
        if not rows:
            console.say("No cluster has a name yet: `eagleray cluster add` gives it one.")
            return
        console.table("Clusters", ["cluster", "address", "key or token", "in use"], rows)


@cluster_app.command("show")
def show(name: Name, json_output: JsonOption = False) -> None:
    """Ask a cluster whether it answers, accepts the key or token, and has a version that fits."""
    from eagleray.cli.remote import jobs_on

    with command_errors():
        console = Console(json_output=json_output)
        cluster = jobs_on(name)
        jobs = cluster.jobs()
        running = sum(not job.state.has_ended for job in jobs)
        facts = {**cluster.facts(), "jobs": len(jobs), "running or queued": running}
        console.emit(facts) if json_output else console.facts(f"Cluster {name}", facts)


@cluster_app.command("remove")
def remove(name: Name) -> None:
    """Forget the name of a cluster."""
    from eagleray.clusters.profiles import ClusterProfiles

    with command_errors():
        settings = read_settings()
        ClusterProfiles.read(settings).without(name).write(settings)
        Console().say(f"{name} is forgotten.")
