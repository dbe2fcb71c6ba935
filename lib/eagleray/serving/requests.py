"""A request as the service takes it, and its answers as they go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.imaging import DecodedImage
from eagleray.serving.image_urls import ImageLink
from eagleray.serving.loading import LoadedVersion
from eagleray.serving.responses import answer_of
from eagleray.serving.tracing import NO_TRACE, Trace
from eagleray.serving.workers import Answered

__all__ = ["Answers", "PredictRequest"]

ImageInRequest = bytes | DecodedImage | ImageLink


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """What a caller wants to know.

    Attributes:
        model: Name.
        images: Encoded, decoded under the model's contract, or where they are.
        application: Of the caller.
        asked: Version number or alias; None for what the route says.
        attributes: For each image what is known of it besides; None where nothing is said.
        request_id: The caller's, or ours.
        deadline: On the monotonic clock.
        trace: Is told where the time goes.
    """

    model: str
    images: Sequence[ImageInRequest]
    application: str
    request_id: str
    deadline: float
    asked: str | None = None
    trace: Trace = NO_TRACE
    attributes: Sequence[Mapping[str, object]] | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What a version answered, one for each image of the request.

    Attributes:
        loaded: The version.
        via: Why this one.
        answered: In the order of the images.
        seconds: From the request to its last answer.
    """

    loaded: LoadedVersion
    via: str
    answered: Sequence[Answered]
    seconds: float

    def as_json(self, *, request_id: str, top_k: int, threshold: float | None) -> dict[str, Any]:
        """Return the members of an `Answer`."""
        manifest = self.loaded.manifest
        return {
            "model": self.loaded.model,
            "version": self.loaded.version,
            "via": self.via,
            "contract_digest": manifest.contract_digest,
            "package_digest": self.loaded.package_digest,
            "request_id": request_id,
            "results": [
                answer_of(item.outcome, manifest, top_k=top_k, threshold=threshold)
                for item in self.answered
            ],
            "timings": self.timings(),
        }

    def timings(self) -> dict[str, float]:
        """Return the members of `Timings`."""
        return {
            "queue_ms": _milliseconds(max(item.queued for item in self.answered)),
            "decode_ms": _milliseconds(max(item.decoding for item in self.answered)),
            "forward_ms": _milliseconds(max(item.forward for item in self.answered)),
            "total_ms": _milliseconds(self.seconds),
            "batch_images": max(item.batch_images for item in self.answered),
        }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
