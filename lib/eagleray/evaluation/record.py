"""The record of an evaluation in the registry: metrics of one model on one set of images."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

__all__ = ["EvaluationRecord"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _require_numbers(metrics: object) -> object:
    """Check the values, so that of many faults only the first is kept.

    Raises:
        ValueError: If a value is not a number.
    """
    if isinstance(metrics, dict):
        for name, value in metrics.items():
            if not isinstance(value, (int, float)):
                raise ValueError(f"{str(name)[:100]!r} is not a number")
    return metrics


class EvaluationRecord(BaseModel):
    """One evaluation of a registered version, as the registry keeps it.

    Attributes:
        data: Location of the images, as the user named it.
        data_digest: SHA-256 of the labelled images, and of how they are divided into tiles if they
            are; two evaluations compare only if it is equal.
        package_digest: SHA-256 of the model package.
        num_images: Number of images that were measured.
        num_failed: Number of images that could not be decoded, and are not in the metrics.
        metrics: Metrics by name; a metric of one label is named `recall[defect]`.
        created: UTC time in ISO 8601.
        arguments: What follows `eagleray evaluate MODEL` to evaluate another model on these images.
        num_leaked: Number of images that the model, or one that it descends from, learned from.
        leakage: These images in one sentence; empty without any.
        tiles: Description of how images were divided into tiles; empty for no tiles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: str
    data_digest: Digest
    package_digest: Digest
    num_images: int
    num_failed: int
    metrics: Annotated[dict[str, FiniteFloat], BeforeValidator(_require_numbers)]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    arguments: tuple[str, ...] = ()
    num_leaked: int = 0
    leakage: str = ""
    tiles: str = ""

    @property
    def counts(self) -> bool:
        """Whether the evaluation is evidence: the model has learned from none of its images."""
        return self.num_leaked == 0

    def command(self, model: str) -> str:
        """Return the command that evaluates a model on these images."""
        words = self.arguments or (self.data,)
        return shlex.join(["eagleray", "evaluate", model, *words])
