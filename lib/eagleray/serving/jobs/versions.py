"""Finds the registered version that a caller means."""

from __future__ import annotations

from eagleray.core.errors import InputError
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.serving.versions.routing import Snapshot, choose

__all__ = ["resolve_version"]


def resolve_version(
    reference: str, application: str, snapshot: Snapshot, registry: Registry
) -> ModelVersion:
    """Return the version that is named, else the caller's pin, else the model's default.

    Args:
        reference: NAME, NAME@ALIAS or NAME/3.
        application: Application of the caller.
        snapshot: The present aliases, routes and applications.
        registry: Registry of the models.

    Raises:
        InputError: If the reference is none.
        UnknownNameError: If there is no such model, version or alias.
    """
    name, separator, target = reference.partition("@" if "@" in reference else "/")
    if separator and not target:
        raise InputError(
            f"Model {reference!r} is not a model or a version; write NAME, NAME@ALIAS or NAME/3."
        )
    if not separator:
        snapshot.require_model(name)
        caller = snapshot.applications.get(application)
        pinned = caller.pins.get(name) if caller else None
        target = pinned or snapshot.route(name).default
    choice = choose(snapshot, name, application=application, version=target)
    return registry.get(name, version=choice.version)
