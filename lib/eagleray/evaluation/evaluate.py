"""Measure a model through the predictor, the way that its callers will use it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from eagleray.datasets.labelled import LabelledImages
from eagleray.errors import BadImageError, InputError
from eagleray.evaluation.metrics import compute_metrics
from eagleray.fetch import fetch_image
from eagleray.imaging import DecodedImage
from eagleray.predictor import Predictor

__all__ = ["Evaluation", "evaluate"]

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model did on a labelled set.

    Attributes:
        metrics: By name, as the task defines them.
        num_images: Measured.
        num_failed: Could not be read or decoded, and are not in the metrics.
    """

    metrics: dict[str, float]
    num_images: int
    num_failed: int


def evaluate(predictor: Predictor, images: LabelledImages) -> Evaluation:
    """Predict every image and compare with its label.

    Raises:
        InputError: None of the images can be decoded, or a label is not one of the model's.
    """
    task = predictor.task
    targets = [task.encode(text) for text in images.texts]
    outputs, kept = [], []
    for start, decoded in _decode_all(predictor, images):
        good = [
            (start + offset, image)
            for offset, image in enumerate(decoded)
            if isinstance(image, DecodedImage)
        ]
        if good:
            kept += [targets[index] for index, _ in good]
            outputs.append(predictor.forward(np.stack([image.pixels for _, image in good])))
    if not kept:
        raise InputError("None of the test images can be decoded.")
    metrics = compute_metrics(
        task,
        torch.from_numpy(np.concatenate(outputs)),
        torch.tensor(kept, dtype=getattr(torch, task.target_type)),
    )
    return Evaluation(metrics, len(kept), len(images) - len(kept))


def _decode_all(
    predictor: Predictor, images: LabelledImages
) -> Iterator[tuple[int, list[DecodedImage | None]]]:
    def read(uri: str) -> DecodedImage | None:
        try:
            decoded = predictor.preprocess(fetch_image(uri, predictor.package.contract))
        except BadImageError:
            return None
        return decoded if isinstance(decoded, DecodedImage) else None

    with ThreadPoolExecutor(max_workers=4) as readers:
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            uris = images.uris[start : start + _IMAGES_AT_ONCE]
            yield start, list(readers.map(read, uris))
