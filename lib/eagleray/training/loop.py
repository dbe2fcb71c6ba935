"""What each worker runs: load -> (step, step, …) -> validate -> checkpoint, epoch by epoch.

The order of images and the batches are the same for any number of workers: a step's images are
chosen for all workers together, and each takes its part of them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from eagleray.datasets.labelled import LabelledImages
from eagleray.evaluation.metrics import make_metrics, metric_inputs
from eagleray.imaging import ImageContract
from eagleray.models.architectures import Architecture, build
from eagleray.models.network import ImageNetwork
from eagleray.models.tasks import Task
from eagleray.training.augment import augment_batch
from eagleray.training.checkpoint import Progress, load_training_state, save_checkpoint
from eagleray.training.pixels import DecodedPixels, open_pixels
from eagleray.training.spec import TrainSpec

__all__ = ["SELECTION_METRIC", "EpochReport", "WorkerInput", "primary_metric", "train_worker"]


SELECTION_METRIC = "selection"
"""What the best epoch has most of: the task's first metric, ties going to the later epoch."""


def primary_metric(task: Task) -> str:
    """Return the name of the validation metric that "best" refers to."""
    return f"validation_{task.metric_names[0]}"


@dataclass(frozen=True)
class WorkerInput:
    """All that a worker is given; it travels through the object store once.

    Attributes:
        spec: What the run is asked to do.
        task: What the model answers.
        architecture: Of the network.
        contract: How images are decoded.
        train: Images to learn.
        validation: Images to choose the best epoch by.
        initial_weights: safetensors bytes that every worker starts from.
        cache_folder: Of decoded images.
        run: Names the run.
        mailbox: A `ray.util.queue.Queue` for `EpochReport`s.
    """

    spec: TrainSpec
    task: Task
    architecture: Architecture
    contract: ImageContract
    train: LabelledImages
    validation: LabelledImages
    initial_weights: bytes
    cache_folder: str
    run: str
    mailbox: Any


@dataclass(frozen=True)
class EpochReport:
    """What rank 0 tells the driver.

    Attributes:
        epoch: Epochs finished; 0 says that the images are decoded.
        metrics: Of the epoch, by name.
        bad_images: (location, reason, message) of images left out, with epoch 0.
        stopped: Why training stopped before its last epoch, if it did.
    """

    epoch: int
    metrics: dict[str, float]
    bad_images: tuple[tuple[str, str, str], ...] = ()
    stopped: str = ""


@dataclass(frozen=True)
class _Part:
    """Decoded images of one part of the data with their encoded targets."""

    decoded: DecodedPixels
    targets: Tensor

    def batch(self, rows: npt.NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Copy some images (uint8, NHWC) and their targets to a device."""
        images = torch.from_numpy(self.decoded.pixels[rows])
        return images.to(device, non_blocking=True), self.targets[rows].to(device)


def train_worker(config: dict[str, Any]) -> None:
    """Train as one of several workers; started by Ray Train.

    Args:
        config: `input`: object-store reference of a `WorkerInput`.
    """
    import ray
    import ray.train.torch

    given: WorkerInput = ray.get(config["input"])
    spec = given.spec
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()

    train = _load(given, given.train)
    validation = _load(given, given.validation)
    if rank == 0:
        bad = (*train.decoded.bad, *validation.decoded.bad)
        given.mailbox.put(EpochReport(0, {}, bad))

    module = build(given.architecture, initialize=False)
    module.load_state_dict(safetensors.torch.load(given.initial_weights))
    autocast = torch.bfloat16 if spec.precision == "bfloat16" else None
    network = ImageNetwork(module, given.contract, autocast=autocast)
    network = network.to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(network)
    optimizer = _make_optimizer(spec, model)
    steps_per_epoch = _count_steps(len(train.decoded.good), spec.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec.learning_rate, total_steps=steps_per_epoch * spec.epochs, pct_start=0.2
    )

    progress = Progress(epoch=0)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            progress = load_training_state(Path(folder), module, optimizer, schedule)

    for epoch in range(progress.epoch, spec.epochs):
        torch.manual_seed(_seed_of(spec.seed, epoch, rank))
        model.train()
        loss_mean = MeanMetric().to(device)
        for rows in _epoch_batches(train.decoded.good, spec, epoch, rank, num_workers):
            images, targets = train.batch(rows, device)
            changed = augment_batch(images, shift=spec.shift, flip=spec.flip)
            loss = _loss(given, model(changed), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            loss_mean.update(loss.detach(), len(rows))
        metrics = {"train_loss": float(loss_mean.compute())}  # over all workers
        if not math.isfinite(metrics["train_loss"]):
            # Everybody stops alike and without an error: an error would start the workers again.
            if rank == 0:
                reason = f"the loss of epoch {epoch + 1} is {metrics['train_loss']}"
                given.mailbox.put(EpochReport(epoch, {}, stopped=reason))
            return
        metrics |= _validate(given, network, validation, rank, num_workers, device)
        # On small validation parts epochs often tie; the later one has seen more.
        metrics[SELECTION_METRIC] = metrics[primary_metric(given.task)] + 1e-9 * epoch
        _report(given, module, optimizer, schedule, Progress(epoch + 1), metrics, rank)


def _load(given: WorkerInput, images: LabelledImages) -> _Part:
    import ray.train

    context = ray.train.get_context()
    decoded = open_pixels(
        images,
        given.contract,
        Path(given.cache_folder) / "decoded",
        run=given.run,
        rank=context.get_local_rank(),
        num_ranks=context.get_local_world_size(),
        barrier=_barrier,
    )
    targets = [given.task.encode(text) for text in images.texts]
    return _Part(decoded, torch.tensor(targets, dtype=getattr(torch, given.task.target_type)))


def _seed_of(*parts: int) -> int:
    """Mix numbers into a seed, so that no two epochs or workers draw alike."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _make_optimizer(spec: TrainSpec, model: nn.Module) -> torch.optim.Optimizer:
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            spec.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=spec.weight_decay,
        )
    return torch.optim.AdamW(model.parameters(), spec.learning_rate, weight_decay=spec.weight_decay)


def _loss(given: WorkerInput, logits: Tensor, targets: Tensor) -> Tensor:
    if given.spec.label_smoothing:
        return nn.functional.cross_entropy(
            logits, targets, label_smoothing=given.spec.label_smoothing
        )
    return given.task.loss(logits, targets)


def _count_steps(num_images: int, batch_size: int) -> int:
    """Whole batches only: what is left over comes in another epoch's order."""
    return max(1, num_images // batch_size)


def _epoch_batches(
    good: npt.NDArray[np.int64], spec: TrainSpec, epoch: int, rank: int, num_workers: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield this worker's rows of every step of an epoch."""
    order = np.random.default_rng((spec.seed, epoch)).permutation(good)
    for step in range(_count_steps(len(good), spec.batch_size)):
        batch = order[step * spec.batch_size : (step + 1) * spec.batch_size]
        yield batch[rank::num_workers]


@torch.no_grad()
def _validate(
    given: WorkerInput,
    network: ImageNetwork,
    part: _Part,
    rank: int,
    num_workers: int,
    device: torch.device,
) -> dict[str, float]:
    """Compute metrics over the validation part; every worker takes a share of it."""
    network.eval()
    rows = part.decoded.good
    if len(rows) >= num_workers:  # else everybody computes all, which changes no mean
        rows = rows[rank::num_workers]
    metrics = make_metrics(given.task).to(device)
    loss_mean = MeanMetric().to(device)
    size = max(1, given.spec.batch_size // num_workers)
    for start in range(0, len(rows), size):
        images, targets = part.batch(rows[start : start + size], device)
        logits = network(images)
        loss_mean.update(given.task.loss(logits, targets), len(targets))
        metrics.update(*metric_inputs(given.task, given.task.activate(logits), targets))
    values = {f"validation_{name}": float(value) for name, value in metrics.compute().items()}
    return {"validation_loss": float(loss_mean.compute()), **values}


def _report(
    given: WorkerInput,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    progress: Progress,
    metrics: dict[str, float],
    rank: int,
) -> None:
    import ray.train

    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="eagleray-") as folder:
        save_checkpoint(Path(folder), module, optimizer, schedule, progress)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)
    given.mailbox.put(EpochReport(progress.epoch, metrics))
