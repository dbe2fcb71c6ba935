"""The process of one step of an export: converts a model, or runs the exported one on images.

    python -m eagleray.exports.worker convert|run FOLDER PARENT_PID

The folder holds `request.json` with the format, the model in `package/`, and for `run` the images
in `pixels.npy`, uint8 (N, H, W, C). The exported files are in `export/`. A run writes
`outputs.npy`, float32 (N, …), and both write `result.json`. An error that the user can fix
is written to `error.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import ExitCode, UserError
from eagleray.core.parent_death import exit_with_parent
from eagleray.exports.base import EXPORTERS, Arrays, Exporter
from eagleray.exports.process import CONVERT, ERROR_FILE
from eagleray.models.package import ModelPackage, read_package
from eagleray.tasks import Task

__all__ = ["main"]

_WARM_UP = 3


def _convert(exporter: Exporter, package: ModelPackage, folder: Path) -> dict[str, Any]:
    exporter.convert(package, folder / "export" / exporter.file)
    return {}


def _run(exporter: Exporter, package: ModelPackage, folder: Path) -> dict[str, Any]:
    """Run every image alone, and time the passes after the first few."""
    path = folder / "export" / exporter.file
    if exporter.cannot_run is not None:
        return {"inspected": exporter.inspect(package, path)}
    runtime = exporter.load_runtime()
    run = runtime.load(str(path))
    pixels = np.load(folder / "pixels.npy")
    for _ in range(_WARM_UP):
        run(pixels[:1])
    outputs, seconds = [], []
    for index in range(len(pixels)):
        start = time.perf_counter()
        found = run(pixels[index : index + 1])
        seconds.append(time.perf_counter() - start)
        outputs.append(_finished(package.task, found))
    np.save(folder / "outputs.npy", np.concatenate(outputs))
    return {
        "runtime": runtime.VERSION,
        "milliseconds": 1000 * float(np.median(seconds)),
        "inspected": exporter.inspect(package, path),
    }


def _finished(task: Task, found: Arrays) -> npt.NDArray[np.float32]:
    """Return the activated outputs of an image (1, …) from those of the exported model."""
    import torch

    if isinstance(found, Mapping):
        tensors = {name: torch.from_numpy(array) for name, array in found.items()}
        finished: npt.NDArray[np.float32] = task.finish_exported(tensors).numpy()
        return finished
    return np.asarray(found, np.float32)


def main(step: str, folder: Path) -> int:
    """Run a step, and return the exit code."""
    request = json.loads((folder / "request.json").read_text())
    try:
        exporter = EXPORTERS.get(request["format"])
        package = read_package(str(folder / "package"))
        result = (_convert if step == CONVERT else _run)(exporter, package, folder)
    except UserError as error:
        (folder / ERROR_FILE).write_text(json.dumps({"message": str(error)}))
        return ExitCode.USER
    (folder / "result.json").write_text(json.dumps(result))
    return ExitCode.OK


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[3]))
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
