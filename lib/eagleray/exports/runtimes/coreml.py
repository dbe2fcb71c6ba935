"""Runs model.mlpackage in Core ML, on macOS."""

from collections.abc import Callable

import coremltools
import numpy as np
from PIL import Image

VERSION = f"Core ML (coremltools {coremltools.__version__})"


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from one uint8 image (1, H, W, C) to float32 outputs (1, num_values)."""
    model = coremltools.models.MLModel(path)

    def run(images: np.ndarray) -> np.ndarray:
        pixels = images[0, :, :, 0] if images.shape[3] == 1 else images[0]
        (outputs,) = model.predict({"images": Image.fromarray(pixels)}).values()
        return np.asarray(outputs, np.float32)

    return run
