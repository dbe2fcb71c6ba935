"""Samples the images of each step, and prefetches their tensors in threads.

The order of images does not depend on the number of workers: a step's images are sampled for all
workers together, and each worker takes its share of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.io.read_ahead import read_ahead
from eagleray.tasks import Task
from eagleray.tasks.base import Targets
from eagleray.training.loop.augment import StepAugmentation
from eagleray.training.loop.distributed import DistributedContext
from eagleray.training.loop.mosaic import put_together
from eagleray.training.loop.pixel_cache import DecodedPixels
from eagleray.training.loop.scales import resize_pixels
from eagleray.training.spec import TrainSpec

__all__ = ["Batch", "BatchPrefetcher", "BatchSampler", "ImageDataset"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageDataset:
    """One split of the data.

    Attributes:
        decoded: Decoded images.
        targets: Targets as the loss takes them, by row.
        attributes: Attributes, if the network takes any.
    """

    decoded: DecodedPixels
    targets: Targets
    attributes: Tensor | None = None

    def inputs(self, rows: Rows, size: tuple[int, int], device: torch.device) -> list[Tensor]:
        """Return the network's inputs without augmentation: images, and attributes if any."""
        images = torch.from_numpy(self.decoded.read(rows, size)).to(device)
        if self.attributes is None:
            return [images]
        return [images, self.attributes[rows].to(device)]


class BatchSampler:
    """Samples the rows of every step of a run.

    Args:
        rows: Rows of the training split.
        spec: Specification with the sampler, the batch size, the number of epochs and the seed.
        labels: Labels of the training split, by row; a balanced sampler needs them.
    """

    def __init__(self, rows: Rows, spec: TrainSpec, labels: Sequence[str]) -> None:
        self._rows, self._spec = rows, spec
        self._classes: list[Rows] = []
        if spec.sampler == "balanced":
            own = np.asarray([labels[row] for row in rows])
            self._classes = [rows[own == label] for label in np.unique(own)]
        # Full batches only; the remaining images have a new place in the next epoch's order.
        self.steps_per_epoch = max(1, len(rows) // spec.batch_size)
        self.num_steps = self.steps_per_epoch * spec.epochs
        self._order = lru_cache(maxsize=2)(self._shuffle)

    @property
    def num_images(self) -> int:
        """Number of rows of the training split."""
        return len(self._rows)

    def row_at(self, position: int) -> int:
        """Return a row of the training split by its position."""
        return int(self._rows[position])

    def rows(self, epoch: int, step: int) -> Rows:
        """Return the rows of a step of an epoch, for all workers together."""
        size = self._spec.batch_size
        return self._order(epoch)[step * size : (step + 1) * size]

    def _shuffle(self, epoch: int) -> Rows:
        rows = self._rows
        if self._classes:
            rows = np.concatenate(
                [self._rows_of(index, epoch) for index in range(len(self._classes))]
            )
        return np.random.default_rng((self._spec.seed, epoch)).permutation(rows)

    def _rows_of(self, index: int, epoch: int) -> Rows:
        """Return the rows of a class in an epoch.

        A class goes through its rows again and again, each time in another order, and each epoch
        continues where the one before it ended: a rare image is repeated, and no common one is
        left out for long.
        """
        rows, num_classes = self._classes[index], len(self._classes)
        # Over the classes, the shares of an epoch add up to its images (Hermite's identity).
        start, stop = (
            (number * len(self._rows) + index) // num_classes for number in (epoch, epoch + 1)
        )
        (first, skipped), (last, taken) = divmod(start, len(rows)), divmod(stop, len(rows))
        if first == last:
            return self._order_of(index, first)[skipped:taken]
        whole = np.tile(rows, last - first - 1)  # their order is of no account: all are shuffled
        begun, ended = self._order_of(index, first), self._order_of(index, last)
        return np.concatenate([begun[skipped:], whole, ended[:taken]])

    def _order_of(self, index: int, turn: int) -> Rows:
        """Return the rows of a class in the order of one of its turns."""
        rng = np.random.default_rng((self._spec.seed, index, turn, 3))
        return rng.permutation(self._classes[index])


@dataclass(frozen=True)
class Batch:
    """A worker's share of a step.

    Attributes:
        inputs: Network inputs on the device: augmented uint8 images (N, H, W, C), and float32
            attributes (N, A) if the model has any.
        targets: Targets of the images, mixed where the specification says so.
        num_images: Number of images of the step, over all workers.
        waited: Seconds that training waited for the batch.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    num_images: int
    waited: float


@dataclass(frozen=True)
class _HostBatch:
    """A worker's share of a step in host memory; `attributes` has one tensor, or none."""

    images: Tensor
    targets: Tensor
    attributes: tuple[Tensor, ...]
    augmentation: StepAugmentation


class BatchPrefetcher:
    """Prefetches a worker's batches in threads, a few steps ahead of training.

    Args:
        dataset: Training split.
        sampler: Rows of every step.
        spec: Specification with the augmentation.
        size: (height, width) of the network's input.
        context: Distributed context of the worker.
        task: Prediction task.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: BatchSampler,
        spec: TrainSpec,
        size: tuple[int, int],
        context: DistributedContext,
        *,
        task: Task,
    ) -> None:
        self._dataset, self._sampler, self._spec = dataset, sampler, spec
        self._size, self._context, self._task = size, context, task
        self._on_gpu = context.device.type == "cuda"
        # On a CPU the network needs the cores; one thread is enough to stay ahead of it.
        self._num_threads = max(1, context.num_cores - 1) if self._on_gpu else 1

    def epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on."""
        batches = read_ahead(
            lambda step: self._load(epoch, step),
            range(first_step, self._sampler.steps_per_epoch),
            threads=self._num_threads,
            max_ahead=self._num_threads + 2,
        )
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            yield self._to_device(batch, time.perf_counter() - started)

    def _load(self, epoch: int, step: int) -> _HostBatch:
        rows = self._sampler.rows(epoch, step)
        augmentation = StepAugmentation(self._spec, epoch, step, len(rows))
        share = range(self._context.rank, len(rows), self._context.world_size)
        size = augmentation.step_size(self._size)
        examples = [self._example(int(rows[place]), place, augmentation, size) for place in share]
        images = torch.from_numpy(np.stack([pixels for pixels, _ in examples]))
        own_rows = rows[share.start :: share.step]
        attributes = self._dataset.attributes
        return _HostBatch(
            images.pin_memory() if self._on_gpu else images,
            self._task.batch_targets([targets for _, targets in examples]),
            () if attributes is None else (attributes[own_rows],),
            augmentation,
        )

    def _example(
        self, row: int, place: int, augmentation: StepAugmentation, size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], Tensor]:
        """Return an augmented image of a step and its targets, which move with its pixels.

        Args:
            row: Its row.
            place: Its number within the step.
            augmentation: The augmentation of the step.
            size: (height, width) of the images of the step.
        """
        task, dataset = self._task, self._dataset
        others = augmentation.mosaic_rows(place, self._sampler.num_images)
        if others:
            tiles = augmentation.mosaic_tiles(place, self._size)
            chosen = [row, *(self._sampler.row_at(other) for other in others)]
            pixels, placements = put_together(
                [dataset.decoded.read_one(one) for one in chosen], tiles, self._size
            )
            targets = task.join_targets(
                [
                    task.move_targets(dataset.targets[one], placement, tile.window)
                    for one, placement, tile in zip(chosen, placements, tiles, strict=True)
                ]
            )
        else:
            pixels, targets = dataset.decoded.read_one(row), dataset.targets[row]
        pixels, placement, window = augmentation.apply(pixels, place, self._size)
        targets = task.move_targets(targets, placement, window)
        if size == self._size:
            return pixels, targets
        return resize_pixels(pixels, size), task.resize_targets(targets, self._size, size)

    def _to_device(self, batch: _HostBatch, waited: float) -> Batch:
        device = self._context.device
        images = batch.images.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        attributes = [tensor.to(device, non_blocking=True) for tensor in batch.attributes]
        if self._spec.mixup or self._spec.cutmix:
            images, targets, *attributes = batch.augmentation.mix(
                images, self._task.soft_targets(targets), *attributes
            )
        return Batch((images, *attributes), targets, batch.augmentation.num_images, waited)
