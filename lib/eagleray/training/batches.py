"""Which images make a step, and their tensors, made ready before they are wanted.

The order of images and the steps are the same for any number of workers: a step's images are
chosen for all workers together, and each takes its share of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.tasks import Task
from eagleray.training.augment import StepAugmentation
from eagleray.training.distributed import DistributedContext
from eagleray.training.pixel_cache import DecodedPixels
from eagleray.training.spec import TrainSpec

__all__ = ["Batch", "BatchPrefetcher", "BatchSampler", "ImageDataset"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageDataset:
    """One part of the data: its decoded images, encoded targets and, if any, attributes."""

    decoded: DecodedPixels
    targets: Tensor
    attributes: Tensor | None = None

    def plain(self, rows: Rows, size: tuple[int, int]) -> Tensor:
        """Return unchanged images: uint8 tensor (N, *size, C)."""
        return torch.from_numpy(self.decoded.read(rows, size))

    def inputs(self, rows: Rows, size: tuple[int, int], device: torch.device) -> list[Tensor]:
        """Return what a network takes of unchanged images: these, and attributes if it has any."""
        images = self.plain(rows, size).to(device)
        if self.attributes is None:
            return [images]
        return [images, self.attributes[rows].to(device)]


class BatchSampler:
    """The rows of every step of a run."""

    def __init__(self, good: Rows, spec: TrainSpec) -> None:
        self._good, self._spec = good, spec
        # Whole batches only: what is left over comes in another epoch's order.
        self.steps_per_epoch = max(1, len(good) // spec.batch_size)
        self.num_steps = self.steps_per_epoch * spec.epochs
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def rows(self, epoch: int, step: int) -> Rows:
        """Return the rows of a step of an epoch, for all workers together."""
        size = self._spec.batch_size
        return self._order(epoch)[step * size : (step + 1) * size]

    def _draw_order(self, epoch: int) -> Rows:
        return np.random.default_rng((self._spec.seed, epoch)).permutation(self._good)


@dataclass(frozen=True)
class Batch:
    """A worker's share of a step.

    Attributes:
        inputs: What the network takes, on the device: uint8 images (N, H, W, C), changed, and
            float32 attributes (N, A) where the model has any.
        targets: Of the images; mixed where the specification says so.
        num_images: Of the step, over all workers.
        waited: Seconds that the step stood still for it.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    num_images: int
    waited: float


@dataclass(frozen=True)
class _Made:
    """A worker's share of a step as a thread has made it; `attributes` has one tensor, or none."""

    images: Tensor
    targets: Tensor
    attributes: tuple[Tensor, ...]
    draws: StepAugmentation


class BatchPrefetcher:
    """Makes a worker's batches in threads, a few steps ahead of training.

    Args:
        part: Of the data.
        plan: The steps.
        spec: What is changed.
        size: (height, width) of the network's input.
        context: Whose share is made.
        task: What the targets are of.
    """

    def __init__(
        self,
        part: ImageDataset,
        plan: BatchSampler,
        spec: TrainSpec,
        size: tuple[int, int],
        context: DistributedContext,
        *,
        task: Task,
    ) -> None:
        self._part, self._plan, self._spec = part, plan, spec
        self._size, self._context, self._task = size, context, task
        on_gpu = context.device.type == "cuda"
        # On a CPU the network needs the cores: one thread stays ahead of it.
        self._num_threads = max(1, context.num_cores - 1) if on_gpu else 1
        self._pin = on_gpu

    def epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on."""
        steps = iter(range(first_step, self._plan.steps_per_epoch))
        with ThreadPoolExecutor(self._num_threads) as pool:
            coming: deque[Future[_Made]] = deque()
            while True:
                while (
                    len(coming) < self._num_threads + 2 and (step := next(steps, None)) is not None
                ):
                    coming.append(pool.submit(self._make, epoch, step))
                if not coming:
                    return
                began = time.perf_counter()
                made = coming.popleft().result()
                waited = time.perf_counter() - began
                yield self._place(made, waited)

    def _make(self, epoch: int, step: int) -> _Made:
        rows = self._plan.rows(epoch, step)
        draws = StepAugmentation(self._spec, epoch, step, len(rows))
        mine = range(self._context.rank, len(rows), self._context.world_size)
        changed = [
            draws.change(self._part.decoded.read_one(int(rows[place])), place, self._size)
            for place in mine
        ]
        images = torch.from_numpy(np.stack(changed))
        share = rows[mine.start :: mine.step]
        attributes = self._part.attributes
        return _Made(
            images.pin_memory() if self._pin else images,
            self._part.targets[share],
            () if attributes is None else (attributes[share],),
            draws,
        )

    def _place(self, made: _Made, waited: float) -> Batch:
        device = self._context.device
        images = made.images.to(device, non_blocking=True)
        targets = made.targets.to(device, non_blocking=True)
        attributes = [tensor.to(device, non_blocking=True) for tensor in made.attributes]
        if self._spec.mixup or self._spec.cutmix:
            images, targets, *attributes = made.draws.mix(
                images, self._task.soft_targets(targets), *attributes
            )
        return Batch((images, *attributes), targets, len(made.draws.unit), waited)
