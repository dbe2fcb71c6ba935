"""What is kept of an evaluation: figures by name, of one model on one set of images."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

__all__ = ["EvaluationRecord"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _require_numbers(metrics: object) -> object:
    """Check the values, so that of many faults only the first is kept.

    Raises:
        ValueError: One is no number.
    """
    if isinstance(metrics, dict):
        for name, value in metrics.items():
            if not isinstance(value, (int, float)):
                raise ValueError(f"{str(name)[:100]!r} is no number")
    return metrics


class EvaluationRecord(BaseModel):
    """One evaluation of a registered version, as the registry keeps it.

    Attributes:
        data: Location that was evaluated, as the user named it.
        data_digest: SHA-256 of the labelled images; two evaluations compare only if it is equal.
        package_digest: Of the model.
        num_images: Measured.
        num_failed: Could not be decoded, and are not in the metrics.
        metrics: By name; a metric of one label is written `recall[defect]`.
        created: UTC time in ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: str
    data_digest: Digest
    package_digest: Digest
    num_images: int
    num_failed: int
    metrics: Annotated[dict[str, FiniteFloat], BeforeValidator(_require_numbers)]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
