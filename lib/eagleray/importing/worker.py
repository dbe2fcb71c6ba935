"""The process that runs an imported graph for the first time: a crash or a hang stays in it.

    python -m eagleray.importing.worker FOLDER PARENT_PID

The folder holds `model.onnx` and the images in `pixels.npy`, uint8 (N, H, W, C). The outputs of
each image alone are written to `alone.npz`, and those of all of them together to `together.npz`,
float32 (N, …), in the order of the graph; the latter not if the graph takes one image at a time.
What keeps the graph from running is written to `fault.txt` instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import ExitCode
from eagleray.core.parent_death import exit_with_parent
from eagleray.inference.openvino import import_openvino

__all__ = ["ALONE_FILE", "FAULT_FILE", "TOGETHER_FILE", "main"]

ALONE_FILE, TOGETHER_FILE, FAULT_FILE = "alone.npz", "together.npz", "fault.txt"


def main(folder: Path) -> int:
    """Run the graph, and return the exit code."""
    core = import_openvino().Core()
    pixels = np.load(folder / "pixels.npy")
    fault = "OpenVINO cannot run the network ({})"
    try:
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(str(folder / "model.onnx")), "CPU", options)
        rows = [_run(compiled, pixels[row : row + 1]) for row in range(len(pixels))]
        np.savez(folder / ALONE_FILE, *(np.concatenate(parts) for parts in zip(*rows, strict=True)))
        if compiled.inputs[0].partial_shape[0].is_dynamic:
            fault = (
                "The network takes a fixed number of images at a time, and a batch cannot be made "
                "of its shapes ({}); export it again with a first dimension that is left open"
            )
            np.savez(folder / TOGETHER_FILE, *_run(compiled, pixels))
    except RuntimeError as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        (folder / FAULT_FILE).write_text(fault.format(cause))
    return ExitCode.OK


def _run(compiled: Any, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    return [np.array(one, np.float32) for one in compiled(pixels).values()]


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
