"""Runs model.onnx in ONNX Runtime."""

from collections.abc import Callable

import numpy as np
import onnxruntime

VERSION = f"ONNX Runtime {onnxruntime.__version__}"


def load(path: str) -> Callable[[np.ndarray], np.ndarray | dict[str, np.ndarray]]:
    """Return a function from uint8 images (N, H, W, C) to float32 outputs (N, num_values).

    Several outputs (N, …) are returned by name.
    """
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    names = [one.name for one in session.get_outputs()]

    def run(images: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        outputs = [np.asarray(one) for one in session.run(names, {"images": images})]
        return outputs[0] if len(names) == 1 else dict(zip(names, outputs, strict=True))

    return run
