"""Responses of the service, as the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eagleray.core.job_state import JobState
from eagleray.models.package import ModelManifest
from eagleray.tasks import Outcome
from eagleray.tasks.limits import CountLimit, exceeded_limits

__all__ = [
    "BatchResponse",
    "ImageExplanation",
    "ImagePrediction",
    "JobLogLine",
    "JobLogs",
    "JobResponse",
    "LabelScore",
    "ObjectFound",
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


class ObjectMask(_Wire):
    """The pixels of an object, in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="Height and width of the upright image.")
    counts: str = Field(description="The runs, column by column.")


class ObjectFound(_Wire):
    """An object in an image; its box is in pixels of the upright image, from the upper left."""

    label: str
    score: float
    x: float = Field(description="Left edge of the box.")
    y: float = Field(description="Upper edge of the box.")
    width: float
    height: float
    mask: ObjectMask | None = Field(default=None, description="Its pixels, of an instance model.")


class SegmentFound(_Wire):
    """A segment of an image; its box is in pixels of the upright image, from the upper left."""

    id: int = Field(description="Gray value of its pixels in the segment map.")
    label: str
    score: float
    area: int = Field(description="Number of its pixels.")
    x: int = Field(description="Left edge of the box.")
    y: int = Field(description="Upper edge of the box.")
    width: int
    height: int


class ImageExplanation(_Wire):
    """Where the evidence for a label is: a heat map over the image."""

    label: str = Field(description="The label that is explained: the predicted one.")
    media_type: Literal["image/png"]
    image: str = Field(description="The upright image under its heat map, a PNG file in base64.")


class ImagePrediction(_Wire):
    """The result of one image: `ok` with a prediction, or `failed` with a reason."""

    model_config = ConfigDict(extra="allow")  # a task may have members of its own

    status: Literal["ok", "failed"]
    label: str | None = Field(default=None, description="The predicted label.")
    score: float | None = Field(default=None, description="Probability of the label.")
    labels: list[str] = Field(default_factory=list, description="All labels that apply.")
    value: float | None = Field(default=None, description="Predicted value of a regression.")
    embedding: list[float] | None = Field(
        default=None, description="Vector of length 1, of an embedding."
    )
    outlier_score: float | None = Field(
        default=None,
        description="Share of the validation images that are less unusual, of a model with "
        "outlier statistics.",
    )
    objects: list[ObjectFound] | None = Field(
        default=None, description="Objects of a detection or instance model, best first."
    )
    count: int | None = Field(default=None, description="Number of objects.")
    counts: dict[str, int] | None = Field(
        default=None, description="Number of objects of each label that there is."
    )
    mask: str | None = Field(
        default=None,
        description="Index of the label of each pixel of the upright image, a PNG file in base64.",
    )
    segments: list[SegmentFound] | None = Field(
        default=None, description="Segments of a panoptic model: things, best first, then stuff."
    )
    segment_map: str | None = Field(
        default=None,
        description="Identifier of the segment of each pixel of the upright image, 0 for the "
        "background, a PNG file of 8 or 16 bits in base64.",
    )
    shares: dict[str, float] | None = Field(
        default=None, description="Share of the pixels that each label has."
    )
    exceeds: list[str] | None = Field(
        default=None, description="Those of the request's limits that the image exceeds."
    )
    label_levels: list[LabelScore] | None = Field(
        default=None,
        description="Most likely label of each level, of a model with labels in a hierarchy.",
    )
    top: list[LabelScore] = Field(
        default_factory=list, description="Most probable labels, best first."
    )
    width: int = Field(default=0, description="Width of the upright image in pixels.")
    height: int = Field(default=0, description="Height of the upright image in pixels.")
    reason: str | None = Field(
        default=None, description="Reason code of a failure, as in batch results."
    )
    message: str | None = Field(default=None, description="A sentence about the failure.")
    explanation: ImageExplanation | None = Field(
        default=None, description="Explanation of the prediction, if the request has explain=true."
    )


class Timings(_Wire):
    """Duration of each stage in milliseconds; for several images, of the slowest."""

    queue_ms: float
    decode_ms: float
    forward_ms: float
    total_ms: float
    batch_images: Annotated[int, Field(ge=0, description="Number of images in the forward pass.")]


class PredictResponse(_Wire):
    """The response to a prediction: one result for each image, in order."""

    model: str
    version: int
    via: str = Field(
        description="How the version was chosen: requested, pinned, canary or default."
    )
    contract_digest: str
    package_digest: str
    engine: str = Field(description="Engine and precision, such as openvino float32.")
    request_id: str
    results: list[ImagePrediction]
    timings: Timings


class BatchResponse(_Wire):
    """The state of a batch job."""

    id: str
    state: JobState
    created: str = Field(description="Time of creation in UTC, in ISO 8601 format.")
    model: str = Field(description="Model version, resolved when the batch was accepted.")
    output: str
    request: dict[str, Any] = Field(description="The request that started the batch.")
    total: int | None = Field(description="Number of images; null before they are listed.")
    done: int = Field(description="Number of images with a result.")
    failed: int = Field(description="Number of images that failed.")
    images_per_second: float | None
    seconds_left: float | None
    message: str = Field(description="Explanation of the state, if there is one.")


class JobResponse(_Wire):
    """The state of a job."""

    id: str
    command: str = Field(description="Name of the command, such as train.")
    state: JobState
    created: str = Field(description="Time of creation in UTC, in ISO 8601 format.")
    application: str = Field(description="Application that submitted it; empty without one.")
    priority: int
    position: int | None = Field(description="Place in the queue, from 1; null unless queued.")
    output: str = Field(description="Location of its output; empty for a command without one.")
    request: dict[str, Any] = Field(description="The fields and options that it was posted with.")
    attempt: int = Field(description="Number of times that it has been started.")
    total: int | None = Field(description="Number of images; null if it is not known.")
    done: int = Field(description="Number of images that are done.")
    failed: int = Field(description="Number of these that failed.")
    exit_code: int | None = Field(description="Exit code of its command, once it has ended.")
    message: str = Field(description="Explanation of the state, if there is one.")


class JobLogLine(_Wire):
    """A piece of what a job has printed: a line with its end."""

    stream: Literal["stdout", "stderr"]
    text: str


class JobLogs(_Wire):
    """What a job has printed, from a position on."""

    lines: list[JobLogLine]
    next: str = Field(description="Position after the last of the lines.")
    ended: bool = Field(description="Whether the job has ended and prints no more after these.")


def image_prediction(
    outcome: Outcome,
    manifest: ModelManifest,
    *,
    top_k: int,
    threshold: float | None,
    limits: Sequence[CountLimit] = (),
) -> dict[str, Any]:
    """Return the members of an `ImagePrediction`.

    Args:
        outcome: Outcome of the image.
        manifest: Manifest of the model that predicted.
        top_k: Maximum number of labels listed.
        threshold: Minimum probability of a label that is listed and, for multilabel models, of one
            that applies; None for the model's own thresholds.
        limits: Numbers of objects that are to be noticed.
    """
    if outcome.prediction is None:
        assert outcome.failure is not None
        failure = outcome.failure
        return {"status": "failed", "reason": failure.reason.value, "message": failure.message}
    members = manifest.task.response(outcome.prediction, top_k=top_k, threshold=threshold)
    if limits:
        members["exceeds"] = exceeded_limits(
            limits, manifest.task, outcome.prediction, threshold=threshold
        )
    return {"status": "ok", **members, "width": outcome.width, "height": outcome.height}
