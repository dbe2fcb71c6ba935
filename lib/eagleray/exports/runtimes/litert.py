"""Runs model.tflite in LiteRT."""

import os
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from ai_edge_litert.interpreter import Interpreter

VERSION = f"LiteRT {version('ai-edge-litert')}"


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from one uint8 image (1, H, W, C) to float32 outputs (1, num_values)."""
    interpreter = Interpreter(path, num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(output["index"]))

    return run
