"""Checks the names of metrics that users write, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from eagleray.core.errors import UnknownNameError, nearest_names

__all__ = ["require_metric"]


def require_metric(name: str, metrics: Sequence[str], *, where: str) -> None:
    """Refuse a metric that will not be computed.

    Args:
        name: Name of the metric, as in `recall[defect]`.
        metrics: Names of the metrics that will be computed.
        where: File, field or option that names the metric, for the message.

    Raises:
        UnknownNameError: If there is no such metric; the message has the nearest names, or those
            of all labels together if none is near.
    """
    if name in metrics:
        return
    common = [metric for metric in metrics if "[" not in metric]
    hint = "" if nearest_names(name, metrics) else f"There are: {', '.join(common)}."
    raise UnknownNameError("metric", name, metrics, hint=hint, where=where)
