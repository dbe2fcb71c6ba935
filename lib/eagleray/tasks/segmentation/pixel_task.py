"""What tasks share that give every pixel a label: the labels, and the share that each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from eagleray.core.errors import InputError
from eagleray.tasks.annotation import Annotation, labels_of_objects, parse_annotation
from eagleray.tasks.base import Outputs, Task
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.segmentation.class_maps import ClassMap, class_map
from eagleray.tasks.segmentation.pixel_counts import count_labels

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["BACKGROUND", "SHARE_PREFIX", "PixelTask", "SharesPrediction", "require_size"]

BACKGROUND = "background"
"""Label of the pixels without an object."""

_MAX_LABELS = 255  # of a map of bytes, one of which stands for ignored pixels
_MAX_LABELS_DESCRIBED = 5

SHARE_PREFIX = "share_"
"""Prefix of the columns of a result table with the share of the pixels of one label each."""


@dataclass(frozen=True, slots=True)
class SharesPrediction(Prediction):
    """The labels of the pixels of one image.

    `labels` are those that some pixel has; there is no label of the whole image.

    Attributes:
        shares: Share of the pixels that each label has, float32 (num_labels,).
    """

    shares: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


class PixelTask(Task):
    """One label for every pixel.

    Attributes:
        labels: Labels in the order of the outputs; the first one is that of pixels without an
            object.
    """

    losses: ClassVar[tuple[str, ...]] = ("cross_entropy_dice", "cross_entropy")
    target_dtype: ClassVar[Literal["float32", "int64"]] = "int64"
    has_many_labels: ClassVar[bool] = True
    label_kind: ClassVar[Literal["text", "objects"]] = "objects"
    main_member: ClassVar[str] = "shares"
    instead: ClassVar[str] = (
        "its masks say what it sees where: the pages of `eagleray predict` and `eagleray "
        "evaluate` draw them, and so does the service with the header Accept: image/png"
    )

    labels: Annotated[tuple[str, ...], Field(min_length=2, max_length=_MAX_LABELS)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        return self

    # --- from annotations to targets ---

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Take the background, and the labels of all objects in alphabetical order.

        Raises:
            InputError: As `labels_of`.
        """
        return cls.model_validate({"labels": cls.labels_of(texts, uris)})

    @classmethod
    def labels_of(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the background, and the labels of all objects in alphabetical order.

        Raises:
            InputError: If a text says no objects, or there are none at all.
        """
        found = labels_of_objects(texts, uris) - {BACKGROUND}
        if not found:
            raise InputError("No image has an object: there is nothing to learn.")
        if len(found) >= _MAX_LABELS:
            raise InputError(
                f"The objects have {len(found):,} labels, and a segmentation model has at most "
                f"{_MAX_LABELS - 1} beside the background; bring labels together."
            )
        return BACKGROUND, *sorted(found)

    @classmethod
    def labels_in(cls, text: str) -> tuple[str, ...]:
        """Return the labels of an image's objects, each once."""
        return parse_annotation(text).labels

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return len(self.labels)

    def encode(self, text: str) -> list[float]:
        """Return the true number of pixels of each label."""
        counts = count_labels(self._true_map(text), len(self.labels))
        return [int(count) for count in counts]

    def _true_map(self, text: str) -> ClassMap:
        return class_map(parse_annotation(text), self.labels)

    # --- training and evaluation ---

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the observations as they are."""
        return outputs

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return all metrics, as `measure` does."""
        return self.measure(decisions, targets)

    # --- prediction and results ---

    def outputs_of(self, prediction: Prediction) -> Outputs:
        """Return the shares of the labels: the probabilities of pixels are not kept."""
        assert isinstance(prediction, SharesPrediction)
        return prediction.shares

    def describe(self, prediction: Prediction) -> str | None:
        """Return the shares of the labels that there are, such as `80.0 % sky, 20.0 % tree`."""
        assert isinstance(prediction, SharesPrediction)
        return self._describe(prediction.shares)

    def _describe(self, shares: npt.NDArray[np.floating]) -> str | None:
        order = np.argsort(-shares, kind="stable")[:_MAX_LABELS_DESCRIBED].tolist()
        found = [f"{shares[at] * 100:.1f} % {self.labels[at]}" for at in order if shares[at] > 0]
        return ", ".join(found) or None

    @classmethod
    def label_types(cls) -> dict[str, pa.DataType]:
        """Return the type of the share of a label."""
        import pyarrow as pa

        return {SHARE_PREFIX: pa.float32()}

    def result_fields(self) -> list[pa.Field]:
        """Return the columns, with the share of the pixels of each label as `share_LABEL`."""
        import pyarrow as pa

        shares = [pa.field(SHARE_PREFIX + label, pa.float32()) for label in self.labels]
        return [*super().result_fields(), *shares]

    def _shares(self, prediction: SharesPrediction) -> dict[str, float]:
        return dict(zip(self.labels, prediction.shares.tolist(), strict=True))

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the share of each label."""
        assert isinstance(prediction, SharesPrediction)
        return {SHARE_PREFIX + label: share for label, share in self._shares(prediction).items()}


def require_size(size: tuple[int, int], annotation: Annotation) -> None:
    """Refuse the annotation of an image of another size.

    Args:
        size: Height and width of the upright image in pixels.
        annotation: What is labelled in it.

    Raises:
        InputError: If they differ.
    """
    if size != (annotation.height, annotation.width):
        raise InputError(
            f"it is of an image of {annotation.height} x {annotation.width} pixels, and the "
            f"upright image has {size[0]} x {size[1]}; correct the annotation."
        )
