"""The interface of what puts the predictions of an image's tiles together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from eagleray.imaging.geometry import Frame
from eagleray.imaging.tiles import Window
from eagleray.tasks.outcome import Prediction

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["TileJoiner"]


class TileJoiner(Protocol):
    """Collects the outputs of tiles, in any order, and makes the prediction of their image."""

    def add(self, window: Window, outputs: npt.NDArray[np.float32], frame: Frame) -> None:
        """Take the activated outputs of one tile.

        Args:
            window: Where the tile is in the image.
            outputs: The row of the activated outputs.
            frame: Maps places in the network's input to the tile.
        """
        ...

    def prediction(self) -> Prediction:
        """Return the prediction of the image."""
        ...
