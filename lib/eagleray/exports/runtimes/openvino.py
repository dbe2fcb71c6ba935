"""Runs model.xml, with model.bin beside it, in OpenVINO."""

from collections.abc import Callable

import numpy as np
import openvino  # type: ignore[import-untyped, unused-ignore]

VERSION = f"OpenVINO {openvino.__version__.split('-', 1)[0]}"


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (N, H, W, C) to float32 outputs (N, num_values)."""
    # OpenVINO would compute in bfloat16 where the processor has it; quantized layers stay int8.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled([images])[0])

    return run
