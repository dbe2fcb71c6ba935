"""Predicts an image in tiles: batches of tiles through the network, and one prediction of all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import BadImageError
from eagleray.imaging.geometry import frame_of
from eagleray.imaging.tiles import TiledImage
from eagleray.models.attributes import Features
from eagleray.tasks import Task
from eagleray.tasks.outcome import Outcome

__all__ = ["predict_tiled"]

Forward = Callable[[npt.NDArray[np.uint8], Features | None], npt.NDArray[np.float32]]


def predict_tiled(
    image: TiledImage,
    task: Task,
    forward: Forward,
    *,
    batch_size: int,
    attributes: npt.NDArray[np.float32] | None = None,
) -> Outcome:
    """Predict an image in tiles; memory is that of a batch of them.

    Args:
        image: The image.
        task: Task of the model, which joins tiles.
        forward: Runs the network over tiles.
        batch_size: Number of tiles in a pass.
        attributes: The features of the image (A,); None if the model takes none.
    """
    joiner = task.join_tiles(image.width, image.height)
    for start in range(0, len(image.windows), batch_size):
        windows = image.windows[start : start + batch_size]
        pixels = np.stack([image.read(window) for window in windows])
        features = None if attributes is None else np.tile(attributes, (len(windows), 1))
        try:
            outputs = forward(pixels, features)
        except BadImageError as error:
            return Outcome.from_error(error)
        for window, row in zip(windows, outputs, strict=True):
            joiner.add(window, row, frame_of(image.contract, window.width, window.height))
    return Outcome(joiner.prediction(), width=image.width, height=image.height)
