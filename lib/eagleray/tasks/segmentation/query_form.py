"""Objects by mask queries: for each query the scores of labels and a mask, see `mask_queries`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame
from eagleray.tasks.annotation import Mask
from eagleray.tasks.base import ImageLosses, LossOptions, Outputs
from eagleray.tasks.segmentation.mask_queries import MaskQueries
from eagleray.tasks.segmentation.object_form import (
    GRID,
    MaskDetections,
    ObjectForm,
    ObjectLimits,
    ScoredSegments,
)
from eagleray.tasks.segmentation.object_masks import encode_masks
from eagleray.tasks.segmentation.query_objects import find_query_segments, find_scored_masks
from eagleray.tasks.segmentation.segments import find_segments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QueryForm"]


@dataclass(frozen=True, slots=True)
class QueryForm(ObjectForm):
    """Scores and masks of queries.

    Attributes:
        queries: Number of the queries, and the size of their masks.
        num_labels: Number of labels that a query may have.
        is_thing: Whether the objects of each label of pixels are told apart, the background first.
    """

    queries: MaskQueries
    num_labels: int
    is_thing: npt.NDArray[np.bool_]

    @property
    def num_outputs(self) -> int:
        """As many as there are labels of pixels."""
        return len(self.is_thing)

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Scores and masks."""
        return {**self.queries.shapes(self.num_labels)}

    def losses(self, options: LossOptions) -> ImageLosses:
        """Refuse to train.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "Networks of mask queries are imported and not trained here; train panoptic/resnet18 "
            "or maskrcnn/resnet18."
        )

    # --- outputs ---

    def activate(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return probabilities of labels and masks as one tensor (N, Q, C + 1 + h * w)."""
        return self.queries.activate(outputs)

    def num_activated(self, contract: ImageContract) -> int:
        """Return the number of scores and places of masks."""
        height, width = self.queries.size
        return self.queries.count * (self.num_labels + 1 + height * width)

    def summarize(self, outputs: Tensor) -> Tensor:
        """Return the mean scores of labels in the cells of a grid (N, num_values)."""
        return self.queries.summarize(outputs, GRID)

    @property
    def num_values(self) -> int:
        """A value for each label and cell of the grid."""
        return self.num_labels * GRID**2

    # --- objects ---

    def find_objects(self, outputs: Outputs, frame: Frame, limits: ObjectLimits) -> MaskDetections:
        """Return the objects, whose masks may overlap."""
        size, kept = (frame.height, frame.width), MaskDetections.empty(limits)
        found = find_scored_masks(self.queries, outputs, *size, limits.min_score)
        for one in islice(found, limits.max_objects):
            encoded = encode_masks(one.pixels.view(np.uint8))[1]
            x, y, width, height = encoded.box
            mask = Mask.model_construct(size=size, counts=encoded.counts)
            kept.add(mask, (x, y, x + width, y + height), one.score, one.label)
        return kept

    def find_segments(self, outputs: Outputs, frame: Frame) -> ScoredSegments:
        """Return the segments of queries; those of a stuff label are one, of the best score."""
        found = find_query_segments(self.queries, outputs, frame.height, frame.width)
        order = np.argsort(-found.scores, kind="stable")
        numbers = np.zeros(1 + len(order), np.uint16)
        numbers[1 + order] = np.arange(1, 1 + len(order))
        labels, scores = found.labels[order] + 1, found.scores[order].tolist()
        classes = np.concatenate([[0], labels])[numbers[found.numbers]]
        is_apart = np.concatenate([[False], self.is_thing[labels]])
        own = np.where(is_apart[numbers[found.numbers]], numbers[found.numbers], 0)
        segments = find_segments(classes, own, labels, self.is_thing)
        best = dict(zip(labels[::-1].tolist(), scores[::-1], strict=True))
        listed = [
            scores[thing - 1] if thing else best.get(label, 0.0)
            for label, thing in zip(segments.labels, segments.numbers, strict=True)
        ]
        return ScoredSegments(segments, listed)
