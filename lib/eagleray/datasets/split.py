"""The parts of labelled data: divided once, reproducibly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eagleray.datasets.labelled import LabelledImages

__all__ = ["Split", "split_images"]


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of the data: `train` is learned, `validation` chooses, `test` is used once."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def split_images(
    images: LabelledImages,
    *,
    stratify: bool,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> Split:
    """Split the data once, reproducibly.

    Args:
        images: All rows.
        stratify: Give every class the same share of each part (at least one image).
        validation_fraction: Of all rows.
        test_fraction: Of all rows; 0 when there is a test set of its own.
        seed: The same seed and data give the same split.
    """
    generator = np.random.default_rng(seed)
    keys: Sequence[str] = images.texts if stratify else [""] * len(images)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for key in sorted(groups):
        order = generator.permutation(groups[key]).tolist()
        num_test = _share(len(order), test_fraction)
        num_validation = _share(len(order), validation_fraction)
        parts[2].extend(order[:num_test])
        parts[1].extend(order[num_test : num_test + num_validation])
        parts[0].extend(order[num_test + num_validation :])
    train, validation, test = (images.take(sorted(part)) for part in parts)
    return Split(train, validation, test)


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0
