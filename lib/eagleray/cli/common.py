"""Options and arguments that several commands share, each described once."""

from __future__ import annotations

from typing import Annotated

import typer

from eagleray.core.errors import OutputExistsError
from eagleray.core.spec import Names

__all__ = [
    "AliasOption",
    "ClusterOption",
    "ForceOption",
    "JsonOption",
    "ModelName",
    "ModelReference",
    "NewAliasOption",
    "OffOption",
    "ReasonOption",
    "SpecFileOption",
    "VerboseOption",
    "require_new",
]

AliasOption = Annotated[str, typer.Option("--alias", help="Alias that points to the version.")]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Cluster to run on: a name (`eagleray cluster add`) or an address; default: the "
        "cluster in use, else a Ray of its own. On a cluster that is reached from outside, "
        "--detach returns once the job is submitted, --retries N submits it again up to N times if "
        "it is lost, and --priority N lets it go before jobs of a lower one.",
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Move the alias from a model of another task, labels or input too."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NewAliasOption = Annotated[
    str | None,
    typer.Option(
        "--alias",
        help="Alias that will point to the new version; default: candidate, if the version is "
        "better than the present one.",
    ),
]
OffOption = Annotated[bool, typer.Option("--off", help="Switch it off.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="A sentence for the history.")]
SpecFileOption = Annotated[
    str | None,
    typer.Option("--spec", help="YAML file of these fields; options override it."),
    Names.INPUT,
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and the workers print.")
]

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
ModelReference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE."
    ),
]


def require_new(output: str) -> None:
    """Refuse a folder that exists, before anything is made for it.

    Raises:
        OutputExistsError: If it exists.
    """
    from eagleray.io import storage

    if storage.exists(output):
        raise OutputExistsError(f"{output} exists already; name a folder that is new.")
