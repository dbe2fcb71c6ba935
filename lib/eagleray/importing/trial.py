"""Runs an imported graph for the first time, in a process with bounds, and checks its outputs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.exports.process import Limits, run_bounded
from eagleray.imaging import ImageContract
from eagleray.importing.probabilities import Promise
from eagleray.importing.spec import ImportSpec
from eagleray.importing.worker import ALONE_FILE, FAULT_FILE, TOGETHER_FILE
from eagleray.tasks import NetworkOutput, Task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Trial", "try_graph"]

_NUM_RANDOM = 2  # images that the network is tried on beside those that are given
_MAX_BATCH_DIFFERENCE = 1e-3  # of an output, in the task's unit or as a share of the largest

Arrays = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Trial:
    """The result of a trial run.

    Attributes:
        outputs: Summaries of the activated outputs of the given images, float32 (N, num_values);
            empty after a fault.
        fault: Why the graph cannot be used, as a sentence without its period; None if it can.
    """

    outputs: npt.NDArray[np.float32]
    fault: str | None = None


def try_graph(
    spec: ImportSpec,
    graph: bytes,
    task: Task,
    contract: ImageContract,
    pixels: tuple[npt.NDArray[np.uint8], ...],
    settings: Settings,
    *,
    promise: Promise | None = None,
) -> Trial:
    """Run a graph on images and on noise, each alone and all together.

    Args:
        spec: Specification of the import.
        graph: The ONNX file of a package.
        task: The task.
        contract: The image contract.
        pixels: Decoded images.
        settings: Settings of this process.
        promise: What the network's scores are taken for; None for what no value shows.

    Raises:
        InputError: If outputs have other shapes than those of the task, are not finite, or are not
            what is promised.
        JobFailedError: If the process crashes, or takes too much time or memory.
    """
    noise = np.random.default_rng(0).integers(0, 256, (_NUM_RANDOM, *contract.shape), np.uint8)
    limits = Limits(spec.max_seconds, spec.max_memory_gb * 1e9)
    log = settings.home_folder / "logs" / "import.log"
    with tempfile.TemporaryDirectory(prefix="eagleray-import-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(graph)
        np.save(folder / "pixels.npy", np.stack([*pixels, *noise]))
        run_bounded("trial run", "eagleray.importing.worker", [], folder, None, limits, log)
        fault_file = folder / FAULT_FILE
        if fault_file.exists():
            return Trial(np.empty(0, np.float32), fault_file.read_text())
        alone = _arrays(folder / ALONE_FILE)
        together = _arrays(folder / TOGETHER_FILE) if (folder / TOGETHER_FILE).exists() else alone
    _require_outputs(spec, task, alone, len(pixels) + _NUM_RANDOM)
    if promise is not None:
        promise.require(spec.file, alone[-1])
    fault = None
    if [one.shape for one in together] != [one.shape for one in alone]:
        fault = f"{spec.file} gives a batch other numbers of outputs than its images"
    else:
        fault = _batch_fault(spec, task, alone, together)
    outputs = task.summarize(task.activate(_named(task, alone))).numpy()
    return Trial(outputs[: len(pixels)], fault)


def _arrays(file: Path) -> Arrays:
    with np.load(file) as saved:
        return [saved[name] for name in saved.files]


def _named(task: Task, arrays: Arrays) -> NetworkOutput:
    """Return the outputs of a network as the task takes them."""
    import torch

    names = list(task.network_outputs)
    tensors = [torch.from_numpy(array) for array in arrays]
    return tensors[0] if len(names) == 1 else dict(zip(names, tensors, strict=True))


def _require_outputs(spec: ImportSpec, task: Task, arrays: Arrays, count: int) -> None:
    """Refuse outputs of other shapes, and such that are not finite."""
    for array, shape in zip(arrays, task.network_outputs.values(), strict=True):
        wanted = (count, *shape)
        fits = len(wanted) == array.ndim and all(
            length in (None, found) for length, found in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"{spec.file} gives outputs of the shape {array.shape} for {count} images, not "
                f"{task.num_outputs} values for each."
            )
        if not np.isfinite(array).all():
            raise InputError(
                f"{spec.file} gives outputs that are not finite; check --mean, --std and --scores."
            )


def _batch_fault(spec: ImportSpec, task: Task, alone: Arrays, together: Arrays) -> str | None:
    """Return how outputs of images in a batch differ from those alone; None if they do not."""
    pairs = zip(_compared(task, alone), _compared(task, together), strict=True)
    for own, other in pairs:
        apart = float((own - other).abs().max())
        unit = max(task.unit, float(own.abs().max()))
        if not apart <= _MAX_BATCH_DIFFERENCE * unit:
            return (
                f"{spec.file} gives another output for an image in a batch than for the image "
                f"alone (they differ by {apart:.3g}); export it again with a first dimension that "
                "is left open"
            )
    return None


def _compared(task: Task, arrays: Arrays) -> list[Tensor]:
    """Return the outputs before anything is chosen among them, which rounding could change."""
    outputs = task.exported_outputs(_named(task, arrays))
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]  # type: ignore[list-item]
