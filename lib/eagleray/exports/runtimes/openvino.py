"""Runs model.xml, with model.bin beside it, in OpenVINO."""

from collections.abc import Callable

import numpy as np
import openvino  # type: ignore[import-untyped, unused-ignore]

VERSION = f"OpenVINO {openvino.__version__.split('-', 1)[0]}"

SEVERAL = ("boxes", "scores", "probabilities", "centers", "offsets")
"""Names that the outputs of a model with several may have."""


def load(path: str) -> Callable[[np.ndarray], np.ndarray | dict[str, np.ndarray]]:
    """Return a function from uint8 images (N, H, W, C) to float32 outputs (N, num_values).

    Several outputs (N, …) are returned by name.
    """
    # OpenVINO would compute in bfloat16 where the processor has it; quantized layers stay int8.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(images: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        results = compiled([images])
        if len(compiled.outputs) == 1:
            return np.array(results[0])
        return {
            next((name for name in SEVERAL if name in output.names), output.any_name): np.array(
                array
            )
            for output, array in results.items()
        }

    return run
