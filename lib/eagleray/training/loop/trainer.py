"""The training loop of one worker: resume, then per epoch steps, validation and a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eagleray.data.encoding import encode_attributes, targets_for_loss
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import ImageContract
from eagleray.io import storage
from eagleray.training.callback import Decision
from eagleray.training.custom import image_losses
from eagleray.training.events import (
    DecisionRequested,
    EpochCompleted,
    ImagesSkipped,
    LossNotFinite,
    StepsCompleted,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.extension import reopened
from eagleray.training.loop.augment import needs_margin
from eagleray.training.loop.batches import Batch, BatchPrefetcher, BatchSampler, ImageDataset
from eagleray.training.loop.checkpoint import BestEpoch, CheckpointStore, Progress, with_prefix
from eagleray.training.loop.checkpoint_writer import CheckpointWriter
from eagleray.training.loop.distillation import Teacher
from eagleray.training.loop.distributed import DistributedContext
from eagleray.training.loop.fsdp import full_tensor
from eagleray.training.loop.metrics import TaskMetrics
from eagleray.training.loop.model_state import ModelState
from eagleray.training.loop.optimizer import learning_rate, set_learning_rate
from eagleray.training.loop.pixel_cache import MAX_DISK_FRACTION, open_pixels, with_margin
from eagleray.training.loop.validation import validate
from eagleray.training.worker_input import WorkerInput

__all__ = ["Trainer", "train"]

AwaitDecision = Callable[[int], Decision]
"""Returns the driver's decision on what follows an epoch, given the number of the epoch."""

_REPORT_INTERVAL = 0.5  # seconds between reports of steps
_LOSS_CHECK_INTERVAL = 20  # steps; reading a loss from a GPU waits for it


def train(
    worker_input: WorkerInput,
    context: DistributedContext,
    report: Callable[[TrainEvent], None],
    await_decision: AwaitDecision | None = None,
) -> None:
    """Train as one of several workers, to the end of the run."""
    Trainer(worker_input, context, report, await_decision=await_decision).run()


class Trainer:
    """One worker of a training run.

    Args:
        worker_input: Input of the worker.
        context: Distributed context of the worker.
        report: Receives the events of the main process.
        await_decision: Waits for the driver's answer to a `DecisionRequested`; None to train on.
        max_disk_fraction: Fraction of the free disk that decoded images may take.
    """

    def __init__(
        self,
        worker_input: WorkerInput,
        context: DistributedContext,
        report: Callable[[TrainEvent], None],
        *,
        await_decision: AwaitDecision | None = None,
        max_disk_fraction: float = MAX_DISK_FRACTION,
    ) -> None:
        self.input, self.context, self.spec = worker_input, context, worker_input.spec
        self.report: Callable[[TrainEvent], None] = (
            report if context.is_main_process else lambda _: None
        )
        self._await_decision = await_decision
        self._max_disk_fraction = max_disk_fraction
        self._store = CheckpointStore(worker_input.checkpoint_folder)
        self._reported_at = 0.0

    def run(self) -> None:
        """Train to the end, from the newest checkpoint if there is one."""
        self.prepare()
        self._resume()
        self.report(
            TrainingStarted(
                self.progress.total_steps, self.sampler.num_steps, self.context.world_size
            )
        )
        try:
            while self._continues():
                if not self._run_epoch():
                    return
        finally:
            self._writer.close()

    def wait_for_checkpoint(self) -> None:
        """Wait until the newest checkpoint is written, after which the process may be stopped."""
        self._writer.wait()

    # --- before the first step ---

    def prepare(self) -> None:
        """Decode the images and build the network."""
        storage.use_s3(self.input.s3)
        contract = self.input.contract
        margin = with_margin(contract) if needs_margin(self.spec) else contract
        self.train = self._open(self.input.train, margin)
        self.validation = self._open(self.input.validation, contract)
        skipped = (*self.train.decoded.bad, *self.validation.decoded.bad)
        if skipped:
            self.report(ImagesSkipped(skipped))
        self.sampler = BatchSampler(self.train.decoded.good, self.spec, self.input.train.labels)
        self.prefetcher = BatchPrefetcher(
            self.train, self.sampler, self.spec, contract.size, self.context, task=self.input.task
        )
        self.model = ModelState(self.input, self.context)
        self._losses_of = image_losses(
            self.spec, self.input.task, self.input.train.labels, self.context.device
        )
        self._teacher = (
            None
            if self.input.teacher is None
            else Teacher(self.input.teacher, self.spec, self.input.task, self.context.device)
        )
        # A mixed image has no label to compare a prediction with.
        is_measured = self.input.task.measures_training and not self.spec.mixes_images
        self._train_metrics = (
            TaskMetrics(self.input.task, context=self.context) if is_measured else None
        )
        self._writer = CheckpointWriter(self._store, keep=self.spec.keep_checkpoints)

    def _open(self, images: LabelledImages, contract: ImageContract) -> ImageDataset:
        worker_input, context = self.input, self.context
        decoded = open_pixels(
            images,
            contract,
            Path(worker_input.cache_folder) / "decoded",
            run=worker_input.run,
            rank=context.local_rank,
            num_ranks=context.local_world_size,
            barrier=context.barrier,
            max_disk_fraction=self._max_disk_fraction,
        )
        attributes = encode_attributes(worker_input.attributes, images)
        return ImageDataset(
            decoded,
            targets_for_loss(worker_input.task, images, worker_input.contract),
            None if attributes is None else torch.from_numpy(attributes),
        )

    def _resume(self) -> None:
        self.progress = Progress()
        self._losses: list[Tensor] = []  # of this epoch's steps
        self._past_losses = torch.empty(0)  # of earlier epochs
        self._best: dict[str, Tensor] = {}
        if self.context.is_main_process:
            self._store.remove_incomplete()
        names = self._store.names() if self.context.is_main_process else []
        name = self.context.broadcast(names[0] if names else None)
        if name is None:
            return
        checkpoint = self._store.read(name)
        self.progress = checkpoint.progress
        if self.progress.ended and reopened(self.progress, self.input.extensions):
            self.progress = dataclasses.replace(self.progress, ended=False)
        self.model.restore(checkpoint)
        self._best = checkpoint.with_prefix("best")
        losses = checkpoint.tensors["losses"]
        self._past_losses = losses[: len(losses) - self.progress.step]
        self._losses = list(losses[len(self._past_losses) :].to(self.context.device).unbind())
        seen = checkpoint.with_prefix("seen")
        if seen and self._train_metrics is not None and self.context.is_main_process:
            self._train_metrics.restore(seen, self.context.device)

    def _continues(self) -> bool:
        """Return whether another epoch follows, on every worker alike."""
        decision = self._request_decision()
        if decision == "stop" and not self.progress.ended:
            self.progress = dataclasses.replace(self.progress, ended=True)
            self._checkpoint()
        is_over = self.progress.ended or self.progress.epoch >= self.spec.epochs
        return decision != "abort" and not is_over

    def _request_decision(self) -> Decision:
        if self._await_decision is None or not self.progress.epochs or self.progress.step:
            return "continue"
        decision: Decision = "continue"
        if self.context.is_main_process:
            self.report(DecisionRequested(self.progress.epochs))
            decision = self._await_decision(self.progress.epoch)
        agreed: Decision = self.context.broadcast(decision)
        return agreed

    # --- an epoch ---

    def _run_epoch(self) -> bool:
        """Run the rest of an epoch; return False if a loss was not finite."""
        epoch, first = self.progress.epoch, self.progress.step
        timer = _EpochTimer(self._writer)
        network = self.model.start_epoch(epoch)
        for step, batch in enumerate(self.prefetcher.epoch(epoch, first), start=first):
            timer.waited += batch.waited
            rate = learning_rate(
                self.spec,
                self.progress.total_steps,
                self.sampler.num_steps,
                self.input.extensions,
            )
            self._losses.append(self.step(network, epoch, step, batch, rate))
            self.progress = dataclasses.replace(
                self.progress,
                epoch=epoch,
                step=step + 1,
                total_steps=self.progress.total_steps + 1,
            )
            if not self._check_losses(epoch, step):
                return False
            if self._is_checkpoint_due(step + 1):
                self._checkpoint()
        num_images = (self.sampler.steps_per_epoch - first) * self.spec.batch_size
        metrics = {**self._measure_training(), **self.validate()}
        self.finish_epoch(epoch, {**timer.metrics(num_images), **metrics})
        return True

    def step(self, network: nn.Module, epoch: int, step: int, batch: Batch, rate: float) -> Tensor:
        """Take one optimizer step; return the mean loss of its images over all workers."""
        torch.manual_seed(_mix_seed(self.spec.seed, epoch, step, self.context.rank))  # for dropout
        optimizer, module = self.model.optimizer, self.model.module
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.context.device)
        count = self.spec.gradient_accumulation_steps
        inputs = list(zip(*(tensor.chunk(count) for tensor in batch.inputs), strict=True))
        targets = batch.targets.chunk(count)
        for number, (tensors, wanted) in enumerate(zip(inputs, targets, strict=True), start=1):
            with _gradient_sync(network, enabled=number == len(inputs)):
                outputs = network(*tensors)
                losses = self._losses_of(outputs, wanted)
                if self._teacher is not None:
                    losses = self._teacher.teach(losses, outputs, tensors)
                loss = losses.sum() / batch.num_images
                # Gradients are averaged over the workers, and the loss is a sum over them.
                (loss * self.context.world_size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            if self._train_metrics is not None:
                with torch.no_grad():
                    self._train_metrics.update(self.input.task.activate(outputs), wanted)
        if self.spec.max_grad_norm:
            nn.utils.clip_grad_norm_(module.parameters(), self.spec.max_grad_norm)
        optimizer.step()
        if self.model.ema is not None:
            self.model.ema.update_parameters(module)
        return self.context.all_reduce(total)

    def _check_losses(self, epoch: int, step: int) -> bool:
        """Report the newest loss; return False, on every worker alike, if one is not finite."""
        last = step + 1 == self.sampler.steps_per_epoch or self._is_checkpoint_due(step + 1)
        on_gpu = self.context.device.type == "cuda"
        if on_gpu and not last and (step + 1) % _LOSS_CHECK_INTERVAL:
            return True
        recent = torch.stack(self._losses[-min(step + 1, _LOSS_CHECK_INTERVAL) :]).cpu()
        if bool(recent.isfinite().all()):
            self._report_step(float(recent[-1]))
            return True
        first_bad = step + 1 - len(recent) + int((~recent.isfinite()).nonzero()[0])
        rows = self.sampler.rows(epoch, first_bad)
        self._writer.close()
        names = self._store.names()
        self.report(
            LossNotFinite(
                epoch=epoch + 1,
                step=first_bad + 1,
                images=tuple(self.input.train.uris[row] for row in rows),
                checkpoint=names[0] if names else None,
            )
        )
        return False

    def _report_step(self, loss: float) -> None:
        now = time.monotonic()
        is_last = self.progress.step == self.sampler.steps_per_epoch
        if is_last or now - self._reported_at >= _REPORT_INTERVAL:
            self._reported_at = now
            self.report(StepsCompleted(self.progress.total_steps, loss))

    def _is_checkpoint_due(self, step: int) -> bool:
        interval = self.spec.checkpoint_steps
        return bool(interval) and step % interval == 0 and step < self.sampler.steps_per_epoch

    # --- between epochs ---

    def _measure_training(self) -> dict[str, float]:
        """Return the task's metrics over the outputs of the epoch's steps, and forget these."""
        if self._train_metrics is None:
            return {}
        found = self._train_metrics.compute()
        self._train_metrics.reset()
        return {f"train_{name}": value for name, value in found.items()}

    def validate(self) -> dict[str, float]:
        """Compute loss and metrics over the validation split."""
        return validate(self.model, self.validation, self.input, self.context)

    def finish_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the metrics of an epoch, keep its weights if it is the best, and save."""
        losses = torch.stack(self._losses).cpu()
        self._past_losses, self._losses = torch.cat([self._past_losses, losses]), []
        metrics = {"train_loss": float(losses.mean()), **metrics}
        monitor, best = self.input.monitor, self.progress.best
        name = monitor.metric
        # On small validation splits epochs often tie; the later one has seen more images.
        if best is None or not monitor.is_better(best.metrics[name], metrics[name]):
            best = BestEpoch(epoch + 1, metrics)
            self._best = {key: value.clone() for key, value in self.model.weights().items()}
        epochs = (*self.progress.epochs, metrics)
        stale = monitor.epochs_without_improvement([one[name] for one in epochs])
        is_last = epoch + 1 == self.spec.epochs
        # An extension gives a run that had stopped early its patience anew.
        extended_at = max((one.epoch for one in self.input.extensions), default=0)
        ended = is_last or 0 < self.spec.patience <= min(stale, epoch + 1 - extended_at)
        self.progress = dataclasses.replace(
            self.progress,
            epoch=epoch + 1,
            step=0,
            epochs=epochs,
            best=best,
            ended=ended,
        )
        self._checkpoint()
        self.report(EpochCompleted(epoch + 1, metrics, ended_early=ended and not is_last))

    def _checkpoint(self) -> None:
        """Save the state of the run; every worker then has the state that a resumed one would."""
        self.context.average_buffers(self.model.module)
        seen: dict[str, Tensor] = {}
        if self._train_metrics is not None and self.progress.step > 0:
            seen = self._train_metrics.gather()
        if not (self.context.is_main_process or self.model.is_sharded):
            return
        losses = [self._past_losses, *(loss.cpu().view(1) for loss in self._losses)]
        tensors = {
            **self.model.tensors(),
            **with_prefix("best", self._best),
            **with_prefix("seen", seen),
            "losses": torch.cat(losses),
        }
        tensors = {name: full_tensor(tensor) for name, tensor in tensors.items()}
        if self.context.is_main_process:
            self._writer.save(self.progress, tensors)


class _EpochTimer:
    """Measures the throughput of an epoch, and the time spent on waiting."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self._writer = writer
        self._started, self._stalled = time.perf_counter(), writer.stalled
        self.waited = 0.0

    def metrics(self, num_images: int) -> dict[str, float]:
        """Return images per second, and the fractions of time spent on waiting."""
        seconds = time.perf_counter() - self._started
        return {
            "images_per_second": num_images / seconds,
            "waiting_for_data": self.waited / seconds,
            "waiting_for_checkpoints": (self._writer.stalled - self._stalled) / seconds,
        }


def _mix_seed(*values: int) -> int:
    """Mix numbers into a seed that differs between steps and between workers."""
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0])


def _gradient_sync(network: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Reduce gradients over the workers after a backward pass, or accumulate them locally."""
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP
        network.set_requires_gradient_sync(enabled)  # type: ignore[operator]
    elif not enabled and isinstance(network, nn.parallel.DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()
