"""Chooses the version of a model that serves a request: a pure function of snapshot and request.

A version that the request names comes first, then the application's pin, then the canary for its
share of the other requests, then the model's default. The canary's share is drawn from the
request id, so the same request gets the same version from every replica.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from eagleray.core.errors import UnknownNameError, UnknownVersionError, unknown_alias
from eagleray.tasks.limits import CountLimit

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
    "Webhook",
    "choose",
    "shadow_of",
]

DEFAULT_ALIAS = "production"


class Via(StrEnum):
    """How the version of a request was chosen."""

    REQUESTED = "requested"
    PINNED = "pinned"
    CANARY = "canary"
    DEFAULT = "default"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Route:
    """The versions of a model that serve requests which name no version.

    Attributes:
        default: Target of most requests: a version number or an alias.
        canary: Target of a share of the requests; None for no canary.
        canary_share: The canary's fraction of the requests, from 0 to 1.
        shadow: Target that gets a copy of requests, and whose predictions are only compared; None
            for no shadow.
        shadow_share: The shadow's fraction of the requests, from 0 to 1.
        warm: Whether the model's versions are loaded before any request needs them.
    """

    default: str = DEFAULT_ALIAS
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    shadow_share: float = 0.0
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where an application is told of predictions that exceed its limits.

    Attributes:
        url: The URL that is posted to.
        secret: Key of the signatures.
        limits: The limits; each is for the models that have its label.
    """

    url: str
    secret: str = field(repr=False)
    limits: tuple[CountLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class Application:
    """A caller of the service.

    Attributes:
        name: Name of the application.
        images_per_second: Quota; None for no limit.
        pins: Target of each pinned model, by the model's name.
        webhook: Its webhook; None without one.
    """

    name: str
    images_per_second: float | None = None
    pins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    webhook: Webhook | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is not revoked, of an application that is not disabled."""

    application: str
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Callers:
    """The applications and their keys, as read from the database at one moment.

    Attributes:
        applications: Applications by name.
        keys: Keys by their SHA-256 in hex.
        last_change: Number of the last change to any application, deleted ones included; 0 if there
            never was one. It never decreases.
    """

    applications: Mapping[str, Application]
    keys: Mapping[str, Key]
    last_change: int


@dataclass(frozen=True)
class Snapshot:
    """The state of registry and database at one moment, with cached properties derived from it.

    Attributes:
        aliases: Version number of each alias of each registered model.
        routes: Routes by model; models without one have `Route()`.
        applications: Applications by name.
        keys: Keys by their SHA-256 in hex.
        newest: Largest version number of each model.
        last_change: Number of the last change to any application, as in `Callers`.
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
        """Return the version that a target resolves to; None for an alias that is unset."""
        if target.isdecimal():
            return int(target)
        return self.aliases[model].get(target)

    @cached_property
    def roles(self) -> Mapping[str, Mapping[Role, str]]:
        """The configured roles of each registered model, with the target of each."""
        roles = {model: dict(_roles_of(model, self.route(model))) for model in self.aliases}
        for application in self.applications.values():
            for model, target in application.pins.items():
                if model in roles:
                    roles[model][Role(model, Via.PINNED, application.name)] = target
        return roles

    @cached_property
    def desired_versions(self) -> Mapping[Role, int]:
        """The configured roles of all models, with the version that each should be served by."""
        return {
            role: version
            for model in sorted(self.roles)
            for role, target in self.roles[model].items()
            if (version := self.version(model, target)) is not None
        }

    def require_model(self, model: str) -> None:
        """Refuse a model that is not registered.

        Raises:
            UnknownNameError: If it is not; the message has the nearest names.
        """
        if model not in self.aliases:
            raise UnknownNameError("model", model, self.aliases)


@dataclass(frozen=True, slots=True)
class Role:
    """A use of a model; the version that serves it changes, the role stays.

    Attributes:
        model: Name of the model.
        via: How the version is chosen.
        name: Name of the pinned application, or the requested target.
    """

    model: str
    via: Via
    name: str = ""

    @property
    def description(self) -> str:
        """The role as text, without the model."""
        return f"{self.via} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Choice:
    """A role, and the version that should serve it now."""

    role: Role
    version: int


def choose(
    snapshot: Snapshot,
    model: str,
    *,
    application: str = "",
    version: str | None = None,
    request_id: str = "",
) -> Choice:
    """Choose the version that serves a request.

    Args:
        snapshot: The current snapshot.
        model: Name of the model.
        application: Name of the caller's application; empty for an anonymous caller.
        version: Version number or alias that the request names; None if it names none.
        request_id: Id of the request, which decides whether the canary serves it.

    Raises:
        UnknownNameError: If there is no such model or alias.
        UnknownVersionError: If the model has no such version.
    """
    snapshot.require_model(model)
    caller = snapshot.applications.get(application)
    route = snapshot.route(model)
    if version is not None:
        role, target = Role(model, Via.REQUESTED, version), version
    elif caller is not None and model in caller.pins:
        role, target = Role(model, Via.PINNED, application), caller.pins[model]
    elif route.canary is not None and _share_of(model, request_id) < route.canary_share:
        role, target = Role(model, Via.CANARY), route.canary
    else:
        role, target = Role(model, Via.DEFAULT), route.default
    return Choice(role, _require_version(snapshot, model, target))


def shadow_of(snapshot: Snapshot, model: str, *, request_id: str) -> Choice | None:
    """Return the shadow that gets a copy of a request; None if there is none."""
    route = snapshot.route(model)
    if route.shadow is None or _share_of(model, f"shadow {request_id}") >= route.shadow_share:
        return None
    version = snapshot.version(model, route.shadow)
    return None if version is None else Choice(Role(model, Via.SHADOW), version)


def _roles_of(model: str, route: Route) -> Iterable[tuple[Role, str]]:
    """Yield the roles that a route defines, with their targets."""
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
    raise unknown_alias(model, target, snapshot.aliases[model])


def _share_of(model: str, text: str) -> float:
    """Return a pseudo-random number from 0 to 1 that depends on model and text only."""
    digest = hashlib.blake2b(f"{model} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
