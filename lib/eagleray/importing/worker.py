"""The process that runs an imported graph for the first time: a crash or a hang stays in it.

    python -m eagleray.importing.worker FOLDER PARENT_PID

The folder holds `model.onnx` and the images in `pixels.npy`, uint8 (N, H, W, C). The logits of all
of them together are written to `together.npy`, and those of each alone to `alone.npy`, float32
(N, num_outputs). An error that the user can fix is written to `error.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from eagleray.core.errors import ExitCode
from eagleray.core.parent_death import exit_with_parent
from eagleray.exports.process import ERROR_FILE
from eagleray.inference.openvino import import_openvino

__all__ = ["main"]


def main(folder: Path) -> int:
    """Run the graph, and return the exit code."""
    core = import_openvino().Core()
    pixels = np.load(folder / "pixels.npy")
    fault = "OpenVINO cannot run the network ({})."
    try:
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(str(folder / "model.onnx")), "CPU", options)
        alone = [compiled(pixels[row : row + 1])[0] for row in range(len(pixels))]
        fault = (
            "The network takes one image at a time, and a batch cannot be made of its shapes "
            "({}); export it again with a first dimension that is left open."
        )
        together = compiled(pixels)[0]
    except RuntimeError as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        (folder / ERROR_FILE).write_text(json.dumps({"message": fault.format(cause)}))
        return ExitCode.USER
    np.save(folder / "alone.npy", np.concatenate(alone).astype(np.float32))
    np.save(folder / "together.npy", np.asarray(together, np.float32))
    return ExitCode.OK


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
