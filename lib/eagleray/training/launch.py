"""Start the workers through Ray Train, listen to them, and see that they get to the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from eagleray.core.errors import InputError, JobFailedError
from eagleray.core.ray_errors import read_failure
from eagleray.core.ray_private import lean_torch_trainer
from eagleray.core.ray_session import Cluster
from eagleray.io import storage
from eagleray.training.checkpoint import BestEpoch, CheckpointStore
from eagleray.training.events import LossNotFinite, RangeTestCompleted, TrainEvent
from eagleray.training.lr_finder import (
    LearningRateSuggestion,
    range_test_as_ray_worker,
    suggest_learning_rate,
)
from eagleray.training.plan import TrainPlan
from eagleray.training.spec import TrainSpec
from eagleray.training.trainer import WorkerInput, best_weights, train_as_ray_worker

__all__ = [
    "TrainResult",
    "describe_stop",
    "load_best_checkpoint",
    "make_worker_input",
    "require_resources",
    "run_range_finder",
    "run_training",
    "uses_gpu",
]

_FAILURES_WITHOUT_PROGRESS = 3
_MAX_WORKERS_PER_CORE = 4

ProgressReporter = Callable[[TrainEvent], None]


@dataclass(frozen=True)
class TrainResult:
    """What training gives back.

    Attributes:
        best: The epoch whose weights were kept.
        epochs: Metrics of every epoch.
        losses: Of every step.
        checkpoints: The folder of the run's checkpoints.
        ended_early: Whether it stopped before the last epoch.
    """

    best: BestEpoch
    epochs: tuple[dict[str, float], ...]
    losses: tuple[float, ...]
    checkpoints: str
    ended_early: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.best.metrics


def require_resources(spec: TrainSpec, cluster: Cluster) -> None:
    """Refuse more workers than can run, which would wait for ever, and GPUs that are not there.

    Raises:
        InputError: With how many there can be.
    """
    if spec.device == "gpu" and not cluster.num_gpus:
        raise InputError("--device gpu: there is no GPU here; leave the option out, or say cpu.")
    on_gpu = uses_gpu(spec, cluster)
    available = cluster.num_gpus if on_gpu else cluster.num_cpus * _MAX_WORKERS_PER_CORE
    if spec.min_workers > available:
        limit = (
            f"there are {cluster.num_gpus} GPUs"
            if on_gpu
            else f"the {cluster.num_cpus} CPU cores here take {available}"
        )
        raise InputError(f"--workers {spec.workers}: {limit}.")


def uses_gpu(spec: TrainSpec, cluster: Cluster) -> bool:
    """Whether workers train on GPUs."""
    return spec.device != "cpu" and cluster.num_gpus > 0


def make_worker_input(
    plan: TrainPlan, *, run: str, checkpoints: str, cache_folder: Path, s3: storage.S3Options
) -> WorkerInput:
    """Return what every worker is given.

    Args:
        plan: What is trained on what.
        run: Names the run.
        checkpoints: Their folder, reachable by every worker.
        cache_folder: Of decoded images.
        s3: How S3 is reached.
    """
    weights = {key: value.contiguous() for key, value in plan.module.state_dict().items()}
    return WorkerInput(
        spec=plan.spec,
        task=plan.task,
        architecture=plan.architecture,
        contract=plan.contract,
        train=plan.split.train,
        validation=plan.split.validation,
        initial_weights=safetensors.torch.save(weights),
        cache_folder=str(cache_folder),
        checkpoint_folder=checkpoints,
        run=run,
        s3=s3,
        attributes=plan.attributes,
    )


def run_training(
    given: WorkerInput, *, ray_folder: str, cluster: Cluster, reporter: ProgressReporter
) -> None:
    """Train on all workers to the end; those that die are started again from the last checkpoint.

    Args:
        given: What every worker gets.
        ray_folder: Where Ray Train keeps its own notes.
        cluster: What there is to run on.
        reporter: Called with every `TrainEvent`, from a thread of its own.

    Raises:
        JobFailedError: The loss is not finite, or workers die without getting any farther.
    """
    store = CheckpointStore(given.checkpoint_folder)
    progress = store.progress()
    if progress is not None and progress.ended:
        return  # a run that was killed while it was tested
    while True:
        reached = store.names()[:1]
        stopped = _run_group(train_as_ray_worker, given, ray_folder, cluster, reporter)
        if stopped is None:
            return
        if isinstance(stopped, LossNotFinite):
            raise JobFailedError(describe_stop(stopped, given))
        if store.names()[:1] == reached:
            raise JobFailedError(
                f"Training stopped: {stopped} Run again with --verbose for the workers' output, "
                f"or go on with `eagleray train --resume {given.run}`."
            )


def run_range_finder(
    given: WorkerInput, *, ray_folder: str, cluster: Cluster, reporter: ProgressReporter
) -> LearningRateSuggestion:
    """Try learning rates on all workers.

    Raises:
        JobFailedError: The workers died.
    """
    found: list[RangeTestCompleted] = []

    def listen(report: TrainEvent) -> None:
        if isinstance(report, RangeTestCompleted):
            found.append(report)
        reporter(report)

    stopped = _run_group(range_test_as_ray_worker, given, ray_folder, cluster, listen)
    if not found:
        raise JobFailedError(f"Trying learning rates stopped: {stopped}")
    return suggest_learning_rate(found[-1].steps)


def _run_group(
    work: Callable[[dict[str, Any]], None],
    given: WorkerInput,
    ray_folder: str,
    cluster: Cluster,
    reporter: ProgressReporter,
) -> LossNotFinite | str | None:
    """Run workers until they end, and return why they stopped before the end, if they did."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    spec = given.spec
    if storage.is_folder(ray_folder):
        storage.remove_tree(ray_folder)  # of workers that died: Ray would go on from its notes
    # It stays with the driver: on another node it would die with a worker's.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer_class = lean_torch_trainer() if cluster.embedded else TorchTrainer
    trainer = trainer_class(
        work,
        train_loop_config={"input": ray.put(given), "mailbox": mailbox},
        scaling_config=ScalingConfig(
            num_workers=_num_workers(spec),
            use_gpu=uses_gpu(spec, cluster),
            resources_per_worker=_resources(spec, cluster),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=ray_folder,
            failure_config=FailureConfig(max_failures=_FAILURES_WITHOUT_PROGRESS - 1),
        ),
    )
    listening = _Listening(mailbox, reporter)
    with listening:
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return read_failure(error).sentence
    return listening.stopped


def _num_workers(spec: TrainSpec) -> int | tuple[int, int]:
    """Return a number of workers, or the range that Ray Train chooses from as nodes come and go."""
    if spec.min_workers == spec.max_workers:
        return spec.max_workers
    return spec.min_workers, spec.max_workers


def _resources(spec: TrainSpec, cluster: Cluster) -> dict[str, float]:
    """Give each worker a GPU, or a core; where there are more workers than cores, part of one."""
    if uses_gpu(spec, cluster):
        return {"GPU": 1}
    return {"CPU": min(1.0, cluster.num_cpus / spec.min_workers)}


def describe_stop(stopped: LossNotFinite, given: WorkerInput) -> str:
    """Say where the loss stopped being a number, and what to do."""
    shown = ", ".join(stopped.images[:4]) + (", …" if len(stopped.images) > 4 else "")
    kept = (
        f"the last good checkpoint is {storage.join(given.checkpoint_folder, stopped.checkpoint)}"
        if stopped.checkpoint
        else "there is no checkpoint yet"
    )
    return (
        f"Training stopped: the loss of step {stopped.step} of epoch {stopped.epoch} is not a "
        f"finite number; its {len(stopped.images)} images are {shown}; {kept}. Lower "
        "--learning-rate, or set --max-grad-norm."
    )


def load_best_checkpoint(given: WorkerInput, module: nn.Module) -> TrainResult:
    """Load the best epoch's weights into a network and tell how the run went."""
    checkpoint = CheckpointStore(given.checkpoint_folder).latest()
    assert checkpoint is not None
    progress = checkpoint.progress
    assert progress.best is not None
    module.load_state_dict(best_weights(checkpoint))
    return TrainResult(
        best=progress.best,
        epochs=progress.epochs,
        losses=tuple(checkpoint.tensors["losses"].tolist()),
        checkpoints=given.checkpoint_folder,
        ended_early=progress.epoch < given.spec.epochs,
    )


class _Listening:
    """Empties the mailbox into a reporter while the driver waits for the workers."""

    def __init__(self, mailbox: Any, reporter: ProgressReporter) -> None:
        self._mailbox, self._listener = mailbox, reporter
        self._over = threading.Event()
        self.stopped: LossNotFinite | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._mailbox.shutdown()

    def _listen(self) -> None:
        from ray.util.queue import Empty

        while True:
            try:
                report: TrainEvent = self._mailbox.get(timeout=0.5)
            except Empty:
                if self._over.is_set():
                    return
            else:
                if isinstance(report, LossNotFinite):
                    self.stopped = report
                self._listener(report)
