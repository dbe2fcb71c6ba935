"""Trains one trial of a tuning in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from eagleray.core.errors import JobFailedError
from eagleray.core.settings import Settings
from eagleray.data.labelled import LabelledImages
from eagleray.data.split import Split
from eagleray.io import storage
from eagleray.tasks import Task
from eagleray.training.events import EpochCompleted, LossNotFinite, TrainEvent
from eagleray.training.launch import describe_stop
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.trainer import Trainer
from eagleray.training.plan import plan_network
from eagleray.training.tuning.search_space import SearchSpace
from eagleray.training.worker_input import make_worker_input

__all__ = ["TrialInput", "run_trial"]


@dataclass(frozen=True)
class TrialInput:
    """The input of all trials; it is put into the object store once.

    Attributes:
        space: Search space.
        images: All labelled images.
        split: Training, validation and test split.
        task: Prediction task.
        settings: Settings of the registry and the caches.
        folder: Folder of the trials' checkpoints.
        run: Name of the tuning run.
        num_threads: Number of threads of a trial.
        s3: Options of S3 access.
    """

    space: SearchSpace
    images: LabelledImages
    split: Split
    task: Task
    settings: Settings
    folder: str
    run: str
    num_threads: int
    s3: storage.S3Options


def run_trial(config: dict[str, Any], trial_input: TrialInput) -> None:
    """Train one specification in this process; started by Ray Tune.

    Args:
        config: Values of the searched fields.
        trial_input: Input of all trials.
    """
    import ray.tune

    key = ray.tune.get_context().get_trial_id()
    torch.set_num_threads(trial_input.num_threads)
    storage.use_s3(trial_input.s3)
    spec = trial_input.space.spec({**config, "keep_checkpoints": 1})
    plan = plan_network(
        spec, trial_input.settings, trial_input.images, trial_input.split, trial_input.task
    )
    worker_input = make_worker_input(
        plan,
        run=f"{trial_input.run}-{key}",
        checkpoints=storage.join(trial_input.folder, key),
        cache_folder=trial_input.settings.cache_folder,
        s3=trial_input.s3,
    )
    trainer = _TrialTrainer(
        worker_input, single_process(spec), lambda event: _report(trainer, event)
    )
    trainer.run()


class _TrialTrainer(Trainer):
    """A trainer that decodes after the node's other trials, to find what they have decoded."""

    def prepare(self) -> None:
        folder = Path(self.input.cache_folder) / "decoded"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "tuning.lock"):
            super().prepare()


def _report(trainer: Trainer, event: TrainEvent) -> None:
    """Report an epoch to Ray Tune, which may then end this process."""
    import ray.tune

    if isinstance(event, LossNotFinite):
        raise JobFailedError(describe_stop(event, trainer.input))
    if isinstance(event, EpochCompleted):
        trainer.wait_for_checkpoint()
        metric = trainer.input.monitor.metric
        ray.tune.report(
            {
                "epoch": event.epoch,
                metric: event.metrics[metric],
                "metrics": event.metrics,
                "last": event.ended_early or event.epoch == trainer.spec.epochs,
            }
        )
