"""A small labelled folder, and the input of a worker that trains on it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.training.events import TrainEvent
from eagleray.training.loop.distributed import DistributedContext, single_process
from eagleray.training.loop.pixel_cache import MAX_DISK_FRACTION
from eagleray.training.loop.trainer import Trainer
from eagleray.training.monitor import Monitor
from eagleray.training.plan import TrainPlan, make_plan
from eagleray.training.result import TrainResult, load_best_checkpoint
from eagleray.training.spec import TrainSpec
from eagleray.training.tuning.trials import TrialTracker
from eagleray.training.worker_input import WorkerInput, make_worker_input


def write_stripes(folder: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Write two classes of gray 32-pixel images: a bright band that lies, or stands, in noise."""
    generator = np.random.default_rng(seed)
    for label in ("horizontal", "vertical"):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 80, (32, 32), dtype=np.uint8)
            top = generator.integers(1, 25)
            pixels[top : top + 6] += 150
            turned = pixels if label == "horizontal" else pixels.T
            Image.fromarray(np.ascontiguousarray(turned)).save(folder / label / f"{index:03d}.png")
    return folder


def small_spec(data: Path | str, **changes: Any) -> TrainSpec:
    """Return a specification that takes a second."""
    fields = {
        "data": str(data),
        "name": "stripes",
        "architecture": "lenet5",
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
    }
    return TrainSpec.make({**fields, **changes})


def plan_for(spec: TrainSpec, home: Path) -> tuple[TrainPlan, WorkerInput]:
    """Plan a run with its checkpoints and caches under a folder."""
    plan = make_plan(spec, Settings(home=home))
    worker_input = make_worker_input(
        plan,
        run="run",
        checkpoints=str(home / "checkpoints"),
        cache_folder=home / "cache",
        s3=storage.S3Options(),
    )
    return plan, worker_input


def train_in_process(
    spec: TrainSpec,
    home: Path,
    *,
    plan: TrainPlan | None = None,
    max_disk_fraction: float = MAX_DISK_FRACTION,
) -> tuple[TrainResult, list[TrainEvent]]:
    """Train in this process, as a trial of a tuning does; the weights go into a plan's network."""
    new_plan, worker_input = plan_for(spec, home)
    plan = plan or new_plan
    events: list[TrainEvent] = []
    context = single_process(spec)
    Trainer(worker_input, context, events.append, max_disk_fraction=max_disk_fraction).run()
    result = load_best_checkpoint(worker_input.checkpoint_folder, plan.module, epochs=spec.epochs)
    return result, events


class KilledError(Exception):
    """Stands for a process that dies."""


class DyingTrainer(Trainer):
    """Dies when it has finished a number of steps."""

    dies_at: int | None = None

    def step(self, *arguments: Any) -> torch.Tensor:
        if self.progress.total_steps == self.dies_at:
            raise KilledError
        return super().step(*arguments)


def train_until(spec: TrainSpec, home: Path, step: int) -> None:
    """Train until a number of steps is finished, and die there."""
    _, worker_input = plan_for(spec, home)
    trainer = DyingTrainer(worker_input, single_process(spec), lambda _: None)
    trainer.dies_at = step
    with pytest.raises(KilledError):
        trainer.run()


def train_as_two(spec: TrainSpec, home: Path) -> TrainResult:
    """Train as two workers, in processes of their own, and return the result."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_train_as_one_of_two, args=(rank, spec, home)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    plan, worker_input = plan_for(spec, home)
    return load_best_checkpoint(worker_input.checkpoint_folder, plan.module, epochs=spec.epochs)


def _train_as_one_of_two(rank: int, spec: TrainSpec, home: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{home}.group", rank=rank, world_size=2
    )
    _, worker_input = plan_for(spec, home)
    context = DistributedContext(rank, 2, rank, 2, torch.device("cpu"))
    Trainer(worker_input, context, lambda _: None).run()
    torch.distributed.destroy_process_group()


ACCURACY = Monitor("accuracy", "max")


def epoch_metrics(value: float, monitor: Monitor = ACCURACY) -> dict[str, float]:
    """Return the metrics of an epoch."""
    return {monitor.metric: value, "train_loss": 1.0}


def tracker_with(
    folder: Path, *trials: tuple[str, list[float]], monitor: Monitor = ACCURACY
) -> TrialTracker:
    """Track ended trials of at most three epochs, given their keys and their metric's values."""
    tracker = TrialTracker(monitor, str(folder))
    for number, (key, scores) in enumerate(trials, start=1):
        tracker.start(key, number, {"learning_rate": 10.0**-number, "horizontal_flip": True})
        (folder / key).mkdir(parents=True)
        (folder / key / "step-000000001.safetensors").touch()
        for place, score in enumerate(scores, start=1):
            tracker.add_epoch(key, epoch_metrics(score, monitor), last=place == 3)
        tracker.end(key)
    return tracker
