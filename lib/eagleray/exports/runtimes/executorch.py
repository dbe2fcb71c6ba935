"""Runs model.pte in ExecuTorch."""

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from executorch.runtime import Runtime

VERSION = f"ExecuTorch {version('executorch')}"


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from one uint8 image (1, H, W, C) to float32 outputs (1, num_values)."""
    method = Runtime.get().load_program(path).load_method("forward")

    def run(images: np.ndarray) -> np.ndarray:
        (outputs,) = method.execute([torch.from_numpy(images)])
        return np.array(outputs.numpy())

    return run
