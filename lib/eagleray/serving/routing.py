"""Which version of a model answers a request: a pure function of a snapshot and the request.

What is asked for outright comes first, then what the application is pinned to, then the canary's
share of the rest, then the model's default. The canary's share is drawn from the request's id, so
that the same request gets the same version from every replica.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from eagleray.core.errors import InputError, UnknownNameError, UnknownVersionError

__all__ = [
    "DEFAULT_ALIAS",
    "Application",
    "Callers",
    "Choice",
    "Key",
    "Role",
    "Route",
    "Snapshot",
    "Via",
    "choose",
    "shadow_of",
]

DEFAULT_ALIAS = "production"


class Via(StrEnum):
    """Why a version was chosen."""

    ASKED = "asked"
    PINNED = "pinned"
    CANARY = "canary"
    DEFAULT = "default"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Route:
    """Which versions of a model answer those who ask for none.

    Attributes:
        default: Target of most requests: a version number, or an alias.
        canary: Target of a share of them.
        canary_share: From 0 to 1.
        shadow: Target that sees requests too, and whose answers are only compared.
        shadow_share: From 0 to 1.
        keep: Whether the versions stay in memory although nobody asks.
    """

    default: str = DEFAULT_ALIAS
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    shadow_share: float = 0.0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Application:
    """A caller.

    Attributes:
        name: Its own.
        images_per_second: Its quota; None for no limit.
        pins: Target of each model that it is pinned on.
    """

    name: str
    images_per_second: float | None = None
    pins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is neither revoked nor of a disabled application."""

    application: str
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may ask, as the database says at one moment.

    Attributes:
        applications: By name.
        keys: By the SHA-256 of the key, in hex.
        last_change: Number of the last change of any application, of those that are deleted too;
            0 where there never was one. It never decreases.
    """

    applications: Mapping[str, Application]
    keys: Mapping[str, Key]
    last_change: int


@dataclass(frozen=True)
class Snapshot:
    """What the registry and the database say at one moment; what follows from it is kept with it.

    Attributes:
        aliases: Version that each alias of each registered model points to.
        routes: Of the models that have one of their own; the others have `Route()`.
        applications: By name.
        keys: By the SHA-256 of the key, in hex.
        newest: Largest version number of each model.
        last_change: Number of the last change of any application, as `Callers` has it.
    """

    aliases: Mapping[str, Mapping[str, int]]
    routes: Mapping[str, Route] = field(default_factory=dict)
    applications: Mapping[str, Application] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    newest: Mapping[str, int] = field(default_factory=dict)
    last_change: int = 0

    def route(self, model: str) -> Route:
        """Return the route of a registered model."""
        return self.routes.get(model, Route())

    def version(self, model: str, target: str) -> int | None:
        """Return the version that a target means; None for an alias that points nowhere."""
        if target.isdecimal():
            return int(target)
        return self.aliases[model].get(target)

    @cached_property
    def roles(self) -> Mapping[str, Mapping[Role, str]]:
        """The standing roles of each registered model, with the target of each."""
        roles = {model: dict(_roles_of(model, self.route(model))) for model in self.aliases}
        for application in self.applications.values():
            for model, target in application.pins.items():
                if model in roles:
                    roles[model][Role(model, Via.PINNED, application.name)] = target
        return roles

    @cached_property
    def standing(self) -> Mapping[Role, int]:
        """The standing roles of all models, with the version that each should have."""
        return {
            role: version
            for model in sorted(self.roles)
            for role, target in self.roles[model].items()
            if (version := self.version(model, target)) is not None
        }

    def require_model(self, model: str) -> None:
        """Refuse a model that is not registered.

        Raises:
            UnknownNameError: With the nearest names.
        """
        if model not in self.aliases:
            raise UnknownNameError("model", model, self.aliases)


@dataclass(frozen=True, slots=True)
class Role:
    """Something that a version of a model is needed for; its version changes, the role stays.

    Attributes:
        model: Name.
        via: Why.
        name: Of the application of a pin, or the target that was asked for.
    """

    model: str
    via: Via
    name: str = ""

    @property
    def words(self) -> str:
        """For a person, without the model."""
        return f"{self.via} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Choice:
    """A role, and the version that it should have now."""

    role: Role
    version: int


def choose(
    snapshot: Snapshot,
    model: str,
    *,
    application: str = "",
    asked: str | None = None,
    request_id: str = "",
) -> Choice:
    """Choose the version that answers a request.

    Args:
        snapshot: What is known.
        model: That is asked.
        application: Of the caller; empty for nobody.
        asked: Version number or alias that the request names.
        request_id: Decides on the canary.

    Raises:
        UnknownNameError: No such model, or no such alias.
        UnknownVersionError: The model has no version of that number.
        InputError: The model's alias points nowhere yet.
    """
    snapshot.require_model(model)
    caller = snapshot.applications.get(application)
    route = snapshot.route(model)
    if asked is not None:
        role, target = Role(model, Via.ASKED, asked), asked
    elif caller is not None and model in caller.pins:
        role, target = Role(model, Via.PINNED, application), caller.pins[model]
    elif route.canary is not None and _share_of(model, request_id) < route.canary_share:
        role, target = Role(model, Via.CANARY), route.canary
    else:
        role, target = Role(model, Via.DEFAULT), route.default
    return Choice(role, _require_version(snapshot, model, target))


def shadow_of(snapshot: Snapshot, model: str, *, request_id: str) -> Choice | None:
    """Return the shadow that sees a request too, if one does."""
    route = snapshot.route(model)
    if route.shadow is None or _share_of(model, f"shadow {request_id}") >= route.shadow_share:
        return None
    version = snapshot.version(model, route.shadow)
    return None if version is None else Choice(Role(model, Via.SHADOW), version)


def _roles_of(model: str, route: Route) -> Iterable[tuple[Role, str]]:
    """Yield the roles that a route gives its model, with their targets."""
    yield Role(model, Via.DEFAULT), route.default
    if route.canary is not None and route.canary_share > 0:
        yield Role(model, Via.CANARY), route.canary
    if route.shadow is not None and route.shadow_share > 0:
        yield Role(model, Via.SHADOW), route.shadow


def _require_version(snapshot: Snapshot, model: str, target: str) -> int:
    version = snapshot.version(model, target)
    newest = snapshot.newest.get(model, version)
    if version is not None and newest is not None and not 1 <= version <= newest:
        raise UnknownVersionError(
            f"Model {model!r} has no version {version}; the newest is {newest}."
        )
    if version is not None:
        return version
    aliases = snapshot.aliases[model]
    if target == DEFAULT_ALIAS:
        raise InputError(
            f"No version of model {model!r} is in production yet; promote one, or ask for one by "
            "its number."
        )
    raise UnknownNameError(f"alias of model {model!r}", target, aliases)


def _share_of(model: str, text: str) -> float:
    """Draw a number from 0 to 1 that depends on nothing but the text."""
    digest = hashlib.blake2b(f"{model} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
