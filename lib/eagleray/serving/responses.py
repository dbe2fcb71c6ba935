"""Responses of the service, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eagleray.core.job_state import JobState
from eagleray.models.package import ModelManifest
from eagleray.tasks import Outcome

__all__ = [
    "BatchResponse",
    "ImagePrediction",
    "LabelScore",
    "PredictResponse",
    "Timings",
    "image_prediction",
]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LabelScore(_Wire):
    """A label and its probability."""

    label: str
    score: float


class ImagePrediction(_Wire):
    """The answer for one image: `ok` with a prediction, or `failed` with a reason."""

    model_config = ConfigDict(extra="allow")  # a task may have members of its own

    status: Literal["ok", "failed"]
    label: str | None = Field(default=None, description="The answer in one word.")
    score: float | None = Field(default=None, description="Probability of the label.")
    labels: list[str] = Field(default_factory=list, description="All labels that hold.")
    value: float | None = Field(default=None, description="Of a regression.")
    top: list[LabelScore] = Field(default_factory=list, description="Likeliest labels, best first.")
    width: int = Field(default=0, description="Of the upright image, in pixels.")
    height: int = Field(default=0, description="Of the upright image, in pixels.")
    reason: str | None = Field(default=None, description="Code of a failure, as in batch tables.")
    message: str | None = Field(default=None, description="A sentence about the failure.")


class Timings(_Wire):
    """Where the time went, in milliseconds; of several images the slowest."""

    queue_ms: float
    decode_ms: float
    forward_ms: float
    total_ms: float
    batch_images: Annotated[int, Field(ge=0, description="Images that shared a forward pass.")]


class PredictResponse(_Wire):
    """The answer to a request: one result for each of its images, in order."""

    model: str
    version: int
    via: str = Field(description="Why this version: asked, pinned, canary or default.")
    contract_digest: str
    package_digest: str
    request_id: str
    results: list[ImagePrediction]
    timings: Timings


class BatchResponse(_Wire):
    """How far a batch job is."""

    id: str
    state: JobState
    created: str = Field(description="UTC, as in ISO 8601.")
    model: str = Field(description="The version that was meant when it was accepted.")
    output: str
    request: dict[str, Any] = Field(description="As it was asked for.")
    total: int | None = Field(description="Images; null before they are listed.")
    done: int = Field(description="Images with a result.")
    failed: int = Field(description="Of these.")
    images_per_second: float | None
    seconds_left: float | None
    message: str = Field(description="Why it is as it is, where there is something to say.")


def image_prediction(
    outcome: Outcome, manifest: ModelManifest, *, top_k: int, threshold: float | None
) -> dict[str, Any]:
    """Return what goes over the wire for an outcome: the members of an `ImagePrediction`.

    Args:
        outcome: Of the predictor.
        manifest: Of the model that gave it.
        top_k: Labels listed at most.
        threshold: Lowest probability of a label that is listed, and of one that holds where
            several may.
    """
    if outcome.prediction is None:
        assert outcome.failure is not None
        failure = outcome.failure
        return {"status": "failed", "reason": failure.reason.value, "message": failure.message}
    members = manifest.task.response(outcome.prediction, top_k=top_k, threshold=threshold)
    return {"status": "ok", **members, "width": outcome.width, "height": outcome.height}
