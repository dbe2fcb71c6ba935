"""Renders the page of explanations: an overlay of each image, and the strongest patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.explanations.patches import Patch, StrongestPatches
from eagleray.inference.explain import Explanation
from eagleray.reports import render_page
from eagleray.reports.overlays import data_uri, overlay
from eagleray.tasks import Failure, Prediction

__all__ = ["ExplainedImage", "draw_image", "render_explanations"]

_MAX_LABELS = 6  # with patches
_MAX_FAILURES = 20
_PATCH_SIDE = 96


@dataclass(frozen=True)
class ExplainedImage:
    """An image with the explanation of its prediction.

    Attributes:
        uri: Location of the image.
        predicted: The predicted labels; none if no label holds.
        score: Probability of the prediction.
        label: The label that is explained.
        picture: The overlay as a `data:` URI.
    """

    uri: str
    predicted: tuple[str, ...]
    score: float | None
    label: str
    picture: str

    def as_json(self) -> dict[str, Any]:
        """Return the image for scripts, without its picture."""
        return {
            "uri": self.uri,
            "predicted": list(self.predicted),
            "score": self.score,
            "label": self.label,
        }


def draw_image(
    uri: str,
    prediction: Prediction,
    picture: npt.NDArray[np.uint8],
    explanation: Explanation,
) -> ExplainedImage:
    """Draw the overlay of an image.

    Args:
        uri: Location of the image.
        prediction: The prediction.
        picture: The whole image, uint8 array (height, width, 1 or 3).
        explanation: Evidence for the label that is explained.
    """
    drawn = overlay(picture, explanation.heat, explanation.frame)
    return ExplainedImage(
        uri, prediction.labels, prediction.score, explanation.label, data_uri(drawn)
    )


def render_explanations(
    images: Sequence[ExplainedImage],
    failures: Mapping[str, Failure],
    patches: StrongestPatches,
    facts: Mapping[str, object],
) -> bytes:
    """Render the page.

    Args:
        images: The explained images.
        failures: Images that could not be explained, by location.
        patches: The strongest patches.
        facts: Facts about the model and the images by name.

    Returns:
        A self-contained HTML file.
    """
    labels = list(patches.counts)
    return render_page(
        "explanations.html.j2",
        title="Explanations",
        images=images,
        failures=dict(list(failures.items())[:_MAX_FAILURES]),
        num_failed=len(failures),
        labels=[
            {"name": label, "count": patches.counts[label], "channels": _channels(patches, label)}
            for label in labels[:_MAX_LABELS]
        ],
        num_more_labels=max(0, len(labels) - _MAX_LABELS),
        uris=[image.uri for image in images],
        facts=facts,
    )


def _channels(patches: StrongestPatches, label: str) -> list[dict[str, Any]]:
    return [
        {
            "number": channel.number,
            "share": channel.share,
            "patches": [{"patch": patch, "picture": _draw(patch)} for patch in channel.patches],
        }
        for channel in patches.of(label)
    ]


def _draw(patch: Patch) -> str:
    """Return a patch as a square picture."""
    side = (_PATCH_SIDE, _PATCH_SIDE)
    enlarged = cv2.resize(patch.pixels, side, interpolation=cv2.INTER_LINEAR)
    shape = (*side, patch.pixels.shape[2])
    return data_uri(np.ascontiguousarray(np.broadcast_to(enlarged.reshape(shape), (*side, 3))))
