"""A prediction request as the service processes it, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.imaging import DecodedImage
from eagleray.serving.prediction.explanations import LabelOverlay
from eagleray.serving.prediction.image_urls import ImageUrl
from eagleray.serving.prediction.responses import image_prediction
from eagleray.serving.prediction.tracing import NO_TRACE, Trace
from eagleray.serving.prediction.workers import TimedOutcome
from eagleray.serving.versions.loading import LoadedVersion
from eagleray.tasks.limits import CountLimit

__all__ = ["ImageInRequest", "PredictRequest", "PredictResult"]

ImageInRequest = bytes | DecodedImage | ImageUrl


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A request to predict images.

    Attributes:
        model: Name of the model.
        images: Images, each encoded, decoded under the model's contract, or as its location.
        application: Name of the caller's application; empty for an anonymous caller.
        request_id: Id of the request, from the caller or generated.
        deadline: Deadline on the monotonic clock.
        version: Version number or alias that the request names; None if it names none.
        trace: Trace that records the stages of the request.
        attributes: Attributes of each image; None if the request has none.
        explain: Whether the prediction of the only image is explained.
    """

    model: str
    images: Sequence[ImageInRequest]
    application: str
    request_id: str
    deadline: float
    version: str | None = None
    trace: Trace = NO_TRACE
    attributes: Sequence[Mapping[str, object]] | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class PredictResult:
    """The outcomes of a request, one for each of its images.

    Attributes:
        loaded: The version that predicted.
        via: How the version was chosen.
        outcomes: Outcomes in the order of the images.
        seconds: Seconds from the request to its last outcome.
        explanation: Explanation of the only image's prediction, if it was requested.
    """

    loaded: LoadedVersion
    via: str
    outcomes: Sequence[TimedOutcome]
    seconds: float
    explanation: LabelOverlay | None = None

    def as_json(
        self,
        *,
        request_id: str,
        top_k: int,
        threshold: float | None,
        limits: Sequence[CountLimit] = (),
    ) -> dict[str, Any]:
        """Return the members of a `PredictResponse`; the arguments are as of `image_prediction`."""
        manifest = self.loaded.manifest
        explained = {} if self.explanation is None else {"explanation": self.explanation.as_json()}
        return {
            "model": self.loaded.model,
            "version": self.loaded.version,
            "via": self.via,
            "contract_digest": manifest.contract_digest,
            "package_digest": self.loaded.package_digest,
            "engine": self.loaded.predictor.engine_name,
            "request_id": request_id,
            "results": [
                {
                    **image_prediction(
                        item.outcome, manifest, top_k=top_k, threshold=threshold, limits=limits
                    ),
                    **explained,
                }
                for item in self.outcomes
            ],
            "timings": self._timings(),
        }

    def _timings(self) -> dict[str, float]:
        """Return the members of `Timings`."""
        return {
            "queue_ms": _milliseconds(max(item.queued for item in self.outcomes)),
            "decode_ms": _milliseconds(max(item.decoding for item in self.outcomes)),
            "forward_ms": _milliseconds(max(item.forward for item in self.outcomes)),
            "total_ms": _milliseconds(self.seconds),
            "batch_images": max(item.batch_images for item in self.outcomes),
        }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
