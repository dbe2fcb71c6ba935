"""Data leakage: the images of an evaluation that the evaluated model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["NO_LEAKAGE", "Leakage"]


@dataclass(frozen=True)
class Leakage:
    """The images of an evaluation that the model, or one that it descends from, was trained on.

    Images of the validation split count too, as they select the epoch and the thresholds.

    Attributes:
        model: Reference of the evaluated model.
        num_images: Number of images of the evaluation.
        rows: Rows of these images, ascending, int64 (M,).
        uses: Number of images by the version that was trained on them and its split, as in
            `{("flowers/3", "train"): 12}`.
    """

    model: str = ""
    num_images: int = 0
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    uses: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    @property
    def finding(self) -> str:
        """What was found, without details and as a part of a sentence; empty for nothing."""
        if not self:
            return ""
        return (
            f"{len(self.rows):,} of these {self.num_images:,} images were used to train "
            f"{self.model}"
        )

    @property
    def sentence(self) -> str:
        """What was found, in one sentence; empty if there is nothing."""
        if not self:
            return ""
        uses = ", ".join(
            f"{count:,} in the {split} split of {version}"
            + ("" if version == self.model else ", from which it descends")
            for (version, split), count in self.uses.items()
        )
        return (
            f"{self.finding} ({uses}): the metrics are optimistic, and do not count for KPIs and "
            "promotions."
        )


NO_LEAKAGE = Leakage()
