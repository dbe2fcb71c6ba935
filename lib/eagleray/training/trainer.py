"""What each worker runs: resume -> (step, step, …) -> validate -> checkpoint, epoch by epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric

from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import ImageContract
from eagleray.io import storage
from eagleray.models.architectures import Architecture, build, find_head
from eagleray.models.attributes import Attribute
from eagleray.models.network import ImageNetwork
from eagleray.tasks import Task
from eagleray.training.augment import needs_margin
from eagleray.training.batches import Batch, BatchPrefetcher, BatchSampler, ImageDataset
from eagleray.training.checkpoint import (
    BestEpoch,
    Checkpoint,
    CheckpointStore,
    CheckpointWriter,
    Progress,
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
)
from eagleray.training.distributed import DistributedContext, join_process_group
from eagleray.training.events import (
    EpochCompleted,
    ImagesSkipped,
    LossNotFinite,
    StepsCompleted,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.fsdp import load_whole, shard, whole
from eagleray.training.metrics import TaskMetrics
from eagleray.training.optimizer import (
    learning_rate,
    make_ema,
    make_optimizer,
    set_learning_rate,
)
from eagleray.training.pixel_cache import open_pixels, with_margin
from eagleray.training.spec import TrainSpec
from eagleray.training.stages import freeze_stages, num_frozen_stages, stages_of

__all__ = ["Trainer", "WorkerInput", "best_weights", "primary_metric", "train_as_ray_worker"]

_TELL_EVERY = 0.5  # seconds between reports of steps
_CHECK_EVERY = 20  # steps between looks at the losses of a GPU, which has to be waited for


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
        checkpoint_folder: Reachable by every worker.
        run: Names the run.
        s3: How S3 is reached.
        attributes: That the network takes beside images.
    """

    spec: TrainSpec
    task: Task
    architecture: Architecture
    contract: ImageContract
    train: LabelledImages
    validation: LabelledImages
    initial_weights: bytes
    cache_folder: str
    checkpoint_folder: str
    run: str
    s3: storage.S3Options
    attributes: tuple[Attribute, ...] = ()


def train_as_ray_worker(config: dict[str, Any]) -> None:
    """Train as one of several workers; started by Ray Train.

    Args:
        config: `input`: reference of a `WorkerInput`; `mailbox`: queue of `TrainEvent`s.
    """
    import ray

    given: WorkerInput = ray.get(config["input"])
    context = join_process_group()
    Trainer(given, context, config["mailbox"].put).run()


def best_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights of the best epoch so far."""
    return checkpoint.part("best") or checkpoint.part("model")


class Trainer:
    """One worker's part of a run.

    Args:
        given: What is trained on what.
        context: The workers.
        report: Hears how it goes, from the leader.
    """

    def __init__(
        self, given: WorkerInput, context: DistributedContext, report: Callable[[TrainEvent], None]
    ) -> None:
        self.given, self.context, self.spec = given, context, given.spec
        self.report: Callable[[TrainEvent], None] = (
            report if context.is_main_process else lambda _: None
        )
        self._store = CheckpointStore(given.checkpoint_folder)

    def run(self) -> None:
        """Train to the end, from the newest checkpoint if there is one."""
        self.prepare()
        self._resume()
        self.report(
            TrainingStarted(self.progress.total_steps, self.plan.num_steps, self.context.world_size)
        )
        try:
            while self.progress.epoch < self.spec.epochs and not self.progress.ended:
                if not self._run_epoch():
                    return
        finally:
            self._writer.close()

    # --- before the first step ---

    def prepare(self) -> None:
        """Decode the images, and build the network as it is before the first step."""
        storage.use_s3(self.given.s3)
        self._load_data()
        self._build()

    def _load_data(self) -> None:
        given = self.given
        self.size = given.contract.size
        margin = with_margin(given.contract) if needs_margin(self.spec) else given.contract
        self.train = self._open(given.train, margin)
        self.validation = self._open(given.validation, given.contract)
        bad = (*self.train.decoded.bad, *self.validation.decoded.bad)
        if bad:
            self.report(ImagesSkipped(bad))
        self.plan = BatchSampler(self.train.decoded.good, self.spec)
        self.prefetcher = BatchPrefetcher(
            self.train, self.plan, self.spec, self.size, self.context, task=given.task
        )

    def _open(self, images: LabelledImages, contract: ImageContract) -> ImageDataset:
        given, context = self.given, self.context
        decoded = open_pixels(
            images,
            contract,
            Path(given.cache_folder) / "decoded",
            run=given.run,
            rank=context.local_rank,
            num_ranks=context.local_world_size,
            barrier=context.barrier,
        )
        attributes = encode_attributes(given.attributes, images)
        return ImageDataset(
            decoded,
            encode_targets(given.task, images),
            None if attributes is None else torch.from_numpy(attributes),
        )

    def _build(self) -> None:
        given, spec = self.given, self.spec
        self.module = build(given.architecture, initialize=False)
        self.module.load_state_dict(safetensors.torch.load(given.initial_weights))
        _drop_features(self.module, given.task.num_outputs, spec.dropout)
        autocast = torch.bfloat16 if spec.precision == "bfloat16" else None
        network = ImageNetwork(self.module, given.contract, autocast=autocast)
        self.stages = stages_of(self.module, given.task.num_outputs)
        self.shards = spec.strategy == "fsdp" and self.context.world_size > 1
        if self.shards:
            shard(network, self.module, self.stages, self.context)
            self.network = network.to(self.context.device)
        else:
            self.network = network.to(self.context.device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(spec, self.module, self.stages)
        self.average = make_ema(self.module, spec.ema_decay) if spec.ema_decay else None
        self.losses_of = given.task.image_losses(spec.loss_options, given.train.labels)
        self._writer = CheckpointWriter(self._store, keep=spec.keep_checkpoints)
        self._wrapped: tuple[int, nn.Module] | None = None

    def _resume(self) -> None:
        self.progress = Progress()
        self.losses: list[Tensor] = []  # of this epoch's steps
        self._past = torch.empty(0)  # of the epochs before
        self._best: dict[str, Tensor] = {}
        if self.context.is_main_process:
            self._store.sweep()
        names = self._store.names() if self.context.is_main_process else []
        name = self.context.broadcast(names[0] if names else None)
        if name is None:
            return
        checkpoint = self._store.read(name)
        self.progress = checkpoint.progress
        load_whole(self.module, checkpoint.part("model"))
        restore_optimizer(self.optimizer, self.module, checkpoint.part("optimizer"))
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint.part("average"))
            self.average.n_averaged.fill_(self.progress.total_steps)
        self._best = checkpoint.part("best")
        finished = checkpoint.tensors["losses"]
        self._past = finished[: len(finished) - self.progress.step]
        self.losses = list(finished[len(self._past) :].to(self.context.device).unbind())

    # --- an epoch ---

    def _run_epoch(self) -> bool:
        """Run what is left of an epoch; False when training cannot go on."""
        epoch, first = self.progress.epoch, self.progress.step
        clock = _Clock(self._writer)
        model = self.start_epoch(epoch)
        for step, batch in enumerate(self.prefetcher.epoch(epoch, first), start=first):
            clock.waited += batch.waited
            rate = learning_rate(self.spec, self.progress.total_steps, self.plan.num_steps)
            self.losses.append(self.step(model, epoch, step, batch, rate))
            self._advance(epoch, step + 1)
            if not self._healthy(epoch, step):
                return False
            if self._is_due(step + 1):
                self._checkpoint()
        num_images = (self.plan.steps_per_epoch - first) * self.spec.batch_size
        figures = {**clock.figures(num_images), **self._validate()}
        self._finish_epoch(epoch, figures)
        return True

    def start_epoch(self, epoch: int) -> nn.Module:
        """Put the network into training, with the stages frozen that are at this epoch."""
        self.network.train()
        frozen = num_frozen_stages(self.spec, len(self.stages), epoch)
        freeze_stages(self.module, self.stages, frozen)
        if self._wrapped is None or self._wrapped[0] != frozen:
            network = self.network if self.shards else self.context.wrap(self.network)
            self._wrapped = (frozen, network)
        return self._wrapped[1]

    def step(self, model: nn.Module, epoch: int, step: int, batch: Batch, rate: float) -> Tensor:
        """Take one step and return the mean loss of its images, over all workers."""
        torch.manual_seed(_seed_of(self.spec.seed, epoch, step, self.context.rank))  # for dropout
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.context.device)
        count = self.spec.gradient_accumulation_steps
        pieces = list(zip(*(tensor.chunk(count) for tensor in batch.inputs), strict=True))
        targets = batch.targets.chunk(count)
        for number, (inputs, wanted) in enumerate(zip(pieces, targets, strict=True), start=1):
            with _exchanging(model, number == len(pieces)):
                loss = self.losses_of(model(*inputs), wanted).sum() / batch.num_images
                # Workers' gradients are averaged, and a share of the images wants them added.
                (loss * self.context.world_size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.spec.max_grad_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.spec.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return self.context.all_reduce(total)

    def _advance(self, epoch: int, step: int) -> None:
        self.progress = dataclasses.replace(
            self.progress,
            epoch=epoch,
            step=step,
            total_steps=self.progress.total_steps + 1,
        )

    def _healthy(self, epoch: int, step: int) -> bool:
        """Tell how it goes; False, at every worker alike, once a loss is not finite."""
        last = step + 1 == self.plan.steps_per_epoch or self._is_due(step + 1)
        if self.context.device.type == "cuda" and not last and (step + 1) % _CHECK_EVERY:
            return True
        recent = torch.stack(self.losses[-min(step + 1, _CHECK_EVERY) :]).cpu()
        if bool(recent.isfinite().all()):
            self._tell(float(recent[-1]))
            return True
        first_bad = step + 1 - len(recent) + int((~recent.isfinite()).nonzero()[0])
        rows = self.plan.rows(epoch, first_bad)
        self._writer.close()
        names = self._store.names()
        self.report(
            LossNotFinite(
                epoch=epoch + 1,
                step=first_bad + 1,
                images=tuple(self.given.train.uris[row] for row in rows),
                checkpoint=names[0] if names else None,
            )
        )
        return False

    _told = 0.0

    def _tell(self, loss: float) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY or self.progress.step == self.plan.steps_per_epoch:
            self._told = now
            self.report(StepsCompleted(self.progress.total_steps, loss))

    def _is_due(self, step: int) -> bool:
        every = self.spec.checkpoint_steps
        return bool(every) and step % every == 0 and step < self.plan.steps_per_epoch

    # --- between epochs ---

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Compute metrics over the validation part; every worker takes a share of it."""
        given, context = self.given, self.context
        context.average_buffers(self.module)
        network = self.network
        if self.average is not None:
            context.average_buffers(self.average.module)
            network = ImageNetwork(
                self.average.module, given.contract, autocast=self.network.autocast
            ).to(context.device)
        network.eval()
        rows = self.validation.decoded.good
        size = max(
            1, self.spec.batch_size // context.world_size // self.spec.gradient_accumulation_steps
        )
        num_passes = -(-len(rows) // size)
        if len(rows) >= context.world_size:  # else everybody computes all, which changes no mean
            num_passes = -(-len(rows) // (context.world_size * size))
            rows = rows[context.rank :: context.world_size]
        metrics = TaskMetrics(given.task).to(context.device)
        loss_mean = MeanMetric().to(context.device)
        for number in range(num_passes):
            part = rows[number * size : (number + 1) * size]
            if not len(part):  # the others' pass needs this worker's share of the weights
                network(*self.validation.inputs(rows[:1], self.size, context.device))
                continue
            targets = self.validation.targets[part].to(context.device)
            logits = network(*self.validation.inputs(part, self.size, context.device))
            loss_mean.update(given.task.loss(logits, targets), len(targets))
            metrics.update(given.task.activate(logits), targets)
        values = {f"validation_{name}": value for name, value in metrics.compute().items()}
        return {"validation_loss": float(loss_mean.compute()), **values}

    def _finish_epoch(self, epoch: int, figures: dict[str, float]) -> None:
        losses = torch.stack(self.losses).cpu()
        self._past, self.losses = torch.cat([self._past, losses]), []
        figures = {"train_loss": float(losses.mean()), **figures}
        name = primary_metric(self.given.task)
        best = self.progress.best
        # On small validation parts epochs often tie; the later one has seen more.
        if best is None or not figures[name] < best.metrics[name]:
            best = BestEpoch(epoch + 1, figures)
            self._best = {key: value.clone() for key, value in self._kept_module().items()}
        stale = epoch + 1 - best.epoch
        self.progress = dataclasses.replace(
            self.progress,
            epoch=epoch + 1,
            step=0,
            epochs=(*self.progress.epochs, figures),
            best=best,
            ended=epoch + 1 == self.spec.epochs or 0 < self.spec.patience <= stale,
        )
        self._checkpoint()
        self.report(EpochCompleted(epoch + 1, figures, ended_early=self._ended_early()))

    def settle(self) -> None:
        """Wait until the newest checkpoint is written, as one must who may be stopped any time."""
        self._writer.wait()

    def _ended_early(self) -> bool:
        return self.progress.ended and self.progress.epoch < self.spec.epochs

    def _kept_module(self) -> dict[str, Tensor]:
        module = self.module if self.average is None else self.average.module
        return dict(module.state_dict())

    def _checkpoint(self) -> None:
        """Save where the run stands; afterwards every worker has what a resumed one would."""
        self.context.average_buffers(self.module)
        if not (self.context.is_main_process or self.shards):
            return
        tensors = {
            **with_prefix("model", self.module.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer, self.module)),
            **with_prefix("best", self._best),
            "losses": torch.cat([self._past, *(loss.cpu().view(1) for loss in self.losses)]),
        }
        if self.average is not None:
            tensors |= with_prefix("average", self.average.module.state_dict())
        tensors = {name: whole(tensor) for name, tensor in tensors.items()}
        if self.context.is_main_process:
            self._writer.save(self.progress, tensors)


class _Clock:
    """Where the time of an epoch goes."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self._writer = writer
        self._began, self._stalled = time.perf_counter(), writer.stalled
        self.waited = 0.0

    def figures(self, num_images: int) -> dict[str, float]:
        """Return images per second, and the shares that went into waiting."""
        seconds = time.perf_counter() - self._began
        return {
            "images_per_second": num_images / seconds,
            "waiting_for_data": self.waited / seconds,
            "waiting_for_checkpoints": (self._writer.stalled - self._stalled) / seconds,
        }


def _seed_of(*parts: int) -> int:
    """Mix numbers into a seed, so that no two steps or workers draw alike."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _drop_features(module: nn.Module, num_outputs: int, share: float) -> None:
    """Drop some of what the head sees; a hook, so that the weights keep their names."""
    if share:
        head = module.get_submodule(find_head(module, num_outputs))
        head.register_forward_pre_hook(
            # The first are the features; attributes may follow.
            lambda layer, inputs: (
                nn.functional.dropout(inputs[0], share, layer.training),
                *inputs[1:],
            )
        )


def _exchanging(model: nn.Module, wanted: bool) -> Any:
    """Bring the workers' gradients together after a part of a step, or keep them for the next."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    elif not wanted and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
