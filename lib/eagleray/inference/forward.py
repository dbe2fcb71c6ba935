"""Runs a network over decoded images in forward passes of limited sizes, on any device.

On CUDA images are copied to the device beside the pass that is under way. After running out of
memory the passes become smaller.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.core.errors import BadImageError, Reason
from eagleray.inference.choice import Choice
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
        choice: The engine and the plan; the plan's batch size is the largest size of a pass.
        smaller_batches: Further sizes of passes on a GPU, where every pass has one of a few shapes
            and a short batch is padded, so that few images need little padding.
        cache_folder: The folder of converted networks.

    Attributes:
        engine: The engine that runs the network.
        run: Runs the network.
        sizes: The sizes of passes, largest first; on a CPU a pass may also be smaller.
    """

    def __init__(
        self,
        package: ModelPackage,
        choice: Choice,
        *,
        smaller_batches: Sequence[int],
        cache_folder: Path,
    ) -> None:
        self.engine, self._plan = choice.engine, choice.plan
        self._activate = package.task.activate
        self.run = self.engine.prepare(package, self._plan, cache_folder)
        self.sizes = sorted({self._plan.batch_size, *smaller_batches}, reverse=True)
        self._pads = self._plan.device != "cpu"
        self._copies: torch.cuda.Stream | None = None
        if self._plan.device.startswith("cuda"):
            self._copies = torch.cuda.Stream(self._plan.device)  # type: ignore[no-untyped-call]

    @property
    def max_size(self) -> int:
        """The largest number of images in a pass."""
        return self.sizes[0]

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
        """Return the size of the next pass: on a GPU one that these images fill."""
        if not self._pads:
            return min(num_images, self.max_size)
        return next((size for size in self.sizes if size <= num_images), self.sizes[-1])

    def _launch_one(self, inputs: Sequence[Tensor], size: int) -> LaunchedPass:
        with torch.inference_mode():
            padded = [self._upload(tensor, size) for tensor in inputs]
            outputs = self._activate(self.run(*padded))[: len(inputs[0])]
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
        """Halve the largest size after running out of memory."""
        largest = self.max_size
        if largest == 1:
            raise BadImageError(
                Reason.OUT_OF_MEMORY, "one image does not fit into the device's memory"
            ) from error
        if self._copies is not None:
            torch.cuda.synchronize(self._plan.device)  # the pass before may still run
        smaller = {largest // 2, *(size for size in self.sizes if size < largest)}
        self.sizes = sorted(smaller, reverse=True)
        gc.collect()
        if self._copies is not None:
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "bad_alloc" in text or "out of memory" in text.lower()
