"""Compares the labels of a webhook's limits with those of models that the application may call."""

from __future__ import annotations

from collections.abc import Sequence

from eagleray.core.display import escape_text
from eagleray.core.errors import UserError, nearest_names
from eagleray.registry.registry import Registry
from eagleray.serving.versions.routing import Application
from eagleray.tasks import Task
from eagleray.tasks.limits import CountLimit

__all__ = ["check_labels"]


def check_labels(application: Application, limits: Sequence[str], registry: Registry) -> list[str]:
    """Return a sentence for each limit that no model of an application's pins can exceed.

    An application may call other models as well, so an unknown label is no error.

    Args:
        application: The application.
        limits: The limits as written, such as `person>10`.
        registry: The registry.
    """
    if not application.pins:
        return [
            f"{application.name} is pinned to no model, so the labels of its limits are not "
            "compared with those of a model; check their spelling."
        ]
    tasks = {model: _task(registry, model, target) for model, target in application.pins.items()}
    known = [one for one in tasks.values() if one is not None and one.counts_objects]
    labels = sorted({label for task in known for label in task.labels})
    models = ", ".join(sorted(tasks))
    return [
        _doubt(limit, labels, application.name, models)
        for limit in map(CountLimit.parse, limits)
        if limit.label not in labels
    ]


def _task(registry: Registry, model: str, target: str) -> Task | None:
    """Return the task of the version that a pin names; None if it cannot be read."""
    try:
        version = (
            registry.get(model, version=int(target))
            if target.isdecimal()
            else registry.get(model, alias=target)
        )
        return registry.manifest(version).task
    except UserError:
        return None


def _doubt(limit: CountLimit, labels: Sequence[str], application: str, models: str) -> str:
    near = nearest_names(limit.label, labels, count=1)
    hint = f", but {escape_text(near[0])}" if near else ""
    return (
        f"No model that {application} is pinned to ({models}) finds objects with the label "
        f"{escape_text(limit.label)!r}{hint}: the webhook is told of {limit} only by other models."
    )
