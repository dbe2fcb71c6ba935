"""Runs model.onnx in ONNX Runtime."""

from collections.abc import Callable

import numpy as np
import onnxruntime

VERSION = f"ONNX Runtime {onnxruntime.__version__}"


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (N, H, W, C) to float32 outputs (N, num_values)."""
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (outputs,) = session.run(None, {"images": images})
        return np.asarray(outputs)

    return run
