"""What is kept of an evaluation: figures by name, of one model on one set of images."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

__all__ = ["EvaluationRecord"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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
    metrics: dict[str, FiniteFloat]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
