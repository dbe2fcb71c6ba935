"""Runs a network over decoded images in forward passes of a few fixed sizes, on any device.

On CUDA images are copied to the device beside the pass that is under way. After running out of
memory the passes become smaller.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.core.errors import BadImageError, Reason
from eagleray.core.types import CompileMode
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import ENGINES, Engine, Run
from eagleray.inference.engines import choose_engine
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.attributes import Features
from eagleray.models.package import ModelPackage

__all__ = ["ForwardPasses", "LaunchedPass"]


@dataclass(frozen=True, slots=True)
class LaunchedPass:
    """A forward pass that was launched.

    Attributes:
        outputs: float32 tensor (N, num_outputs) in the host's memory.
        done: The event of the copy to the host; None if the outputs are there already.
    """

    outputs: Tensor
    done: torch.cuda.Event | None = None

    def read(self) -> npt.NDArray[np.float32]:
        """Wait for the outputs, and return them."""
        if self.done is not None:
            self.done.synchronize()
        outputs: npt.NDArray[np.float32] = self.outputs.numpy()
        return outputs


class ForwardPasses:
    """A network that is ready to run, with the sizes that its passes may have.

    Args:
        package: The model package.
        plan: How the network runs; its batch size is the largest size of a pass.
        smaller_batches: Further sizes, so that few images need little padding.
        compile_mode: The argument of `choose_engine`.
        expected_images: The argument of `choose_engine`.
        cache_folder: The folder of compiled networks.

    Attributes:
        engine: The engine that runs the network.
        runs: The network for each size of a pass, largest first.
    """

    engine: Engine

    def __init__(
        self,
        package: ModelPackage,
        plan: ExecutionPlan,
        *,
        smaller_batches: Sequence[int],
        compile_mode: CompileMode,
        expected_images: int,
        cache_folder: Path,
    ) -> None:
        self._package, self._plan, self._cache_folder = package, plan, cache_folder
        self._activate = package.task.activate
        self.runs: dict[int, Run] = {}
        for size in sorted({plan.batch_size, *smaller_batches}, reverse=True):
            if not self.runs or self.engine.fixed_batch_size:  # or the last network takes any size
                sized_plan = replace(plan, batch_size=size)
                self.engine = choose_engine(
                    package,
                    sized_plan,
                    compile_mode=compile_mode,
                    expected_images=expected_images,
                    cache_folder=cache_folder,
                )
                run = self.engine.prepare(package, sized_plan, cache_folder)
            self.runs[size] = run
        self._copies: torch.cuda.Stream | None = None
        if plan.device.startswith("cuda"):
            self._copies = torch.cuda.Stream(plan.device)  # type: ignore[no-untyped-call]

    @property
    def max_size(self) -> int:
        """The largest number of images in a pass."""
        return max(self.runs)

    @property
    def pins_memory(self) -> bool:
        """Whether images in page-locked memory are copied beside the pass that is under way."""
        return self._copies is not None

    def launch(self, pixels: Tensor, attributes: Features | None) -> Iterator[LaunchedPass]:
        """Launch passes over images, in order, each when the iterator is advanced.

        Args:
            pixels: uint8 tensor (N, H, W, C) of the contract's shape.
            attributes: float32 array (N, A); None if the model takes none.

        Raises:
            BadImageError: If not even one image fits into memory (`out_of_memory`).
        """
        inputs = [pixels] if attributes is None else [pixels, torch.from_numpy(attributes)]
        position = 0
        while position < len(pixels):
            size = self._size_for(len(pixels) - position)
            try:
                batch = [tensor[position : position + size] for tensor in inputs]
                launched = self._launch_one(batch, size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve_size(error)
            else:
                yield launched
                position += size

    def _size_for(self, num_images: int) -> int:
        """Return the largest size that these images fill, else the smallest one."""
        return next((size for size in self.runs if size <= num_images), min(self.runs))

    def _launch_one(self, inputs: Sequence[Tensor], size: int) -> LaunchedPass:
        with torch.inference_mode():
            padded = [self._upload(tensor, size) for tensor in inputs]
            outputs = self._activate(self.runs[size](*padded))[: len(inputs[0])]
            if self._copies is None:
                return LaunchedPass(outputs.cpu())
            # The copy to the host is queued now: later it would wait for the next pass.
            on_host = outputs.to("cpu", non_blocking=True)
            # A thread that waits for it sleeps, since the core has images to decode.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(self._plan.device))
        return LaunchedPass(on_host, done)

    def _upload(self, rows: Tensor, size: int) -> Tensor:
        """Copy images or attributes to the device, padded to `size` with zeros."""
        if self._copies is None:
            return self._padded(rows, size)
        with torch.cuda.stream(self._copies):  # beside the pass that is under way
            padded = self._padded(rows, size)
        computing = torch.cuda.current_stream(self._plan.device)
        computing.wait_stream(self._copies)
        padded.record_stream(computing)  # or the next copy could take its memory too early
        return padded

    def _padded(self, rows: Tensor, size: int) -> Tensor:
        if len(rows) == size:
            return rows.to(self._plan.device, non_blocking=True)
        padded = rows.new_zeros((size, *rows.shape[1:]), device=self._plan.device)
        padded[: len(rows)].copy_(rows, non_blocking=True)
        return padded

    def _halve_size(self, error: BaseException) -> None:
        """Halve the largest size after running out of memory, with an engine that takes any."""
        largest = self.max_size
        if largest == 1:
            raise BadImageError(
                Reason.OUT_OF_MEMORY, "one image does not fit into the device's memory"
            ) from error
        if self._copies is not None:
            torch.cuda.synchronize(self._plan.device)  # the pass before may still run
        run = self.runs[largest]
        if self.engine.fixed_batch_size:
            self.engine = ENGINES.get(EagerEngine.name)
            run = self.engine.prepare(self._package, self._plan, self._cache_folder)
        smaller = {largest // 2, *(size for size in self.runs if size < largest)}
        self.runs = dict.fromkeys(sorted(smaller, reverse=True), run)
        gc.collect()
        if self._copies is not None:
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text.lower()
