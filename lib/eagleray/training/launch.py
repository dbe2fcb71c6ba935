"""Start the workers through Ray Train, listen to them, and bring the best epoch home."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from eagleray.cluster import Cluster
from eagleray.errors import InputError, JobFailedError
from eagleray.training.checkpoint import load_weights
from eagleray.training.loop import SELECTION_METRIC, EpochReport, WorkerInput, train_worker

__all__ = ["TrainedWeights", "require_workers", "run_training"]

_RESTARTS = 2
_CHECKPOINTS_KEPT = 2

Listener = Callable[[EpochReport], None]


@dataclass(frozen=True)
class TrainedWeights:
    """What training gives back.

    Attributes:
        metrics: Of the best epoch.
        folder: Where the run's checkpoints are.
    """

    metrics: dict[str, float]
    folder: str


def require_workers(num_workers: int, cluster: Cluster) -> None:
    """Refuse more workers than can run, which would wait for ever.

    Raises:
        InputError: With how many there can be.
    """
    available = cluster.num_gpus or cluster.num_cpus
    if num_workers > available:
        kind = "GPUs" if cluster.num_gpus else "CPU cores"
        raise InputError(
            f"--workers {num_workers} needs {num_workers} {kind}, there are {available}."
        )


def run_training(
    given: WorkerInput,
    module: nn.Module,
    *,
    runs_folder: str,
    cluster: Cluster,
    listener: Listener,
) -> TrainedWeights:
    """Train on all workers and load the best epoch's weights into `module`.

    Args:
        given: What every worker gets; the mailbox is filled in here.
        module: Takes the best weights.
        runs_folder: Where checkpoints are kept, reachable by every worker.
        cluster: What there is to run on.
        listener: Called with every `EpochReport`, from a thread of its own.

    Raises:
        JobFailedError: The workers failed more often than they are restarted.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    mailbox = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"input": ray.put(replace(given, mailbox=mailbox))},
        scaling_config=ScalingConfig(num_workers=given.spec.workers, use_gpu=cluster.num_gpus > 0),
        run_config=RunConfig(
            name=given.run,
            storage_path=runs_folder,
            failure_config=FailureConfig(max_failures=_RESTARTS),
            checkpoint_config=CheckpointConfig(
                num_to_keep=_CHECKPOINTS_KEPT,
                checkpoint_score_attribute=SELECTION_METRIC,
                checkpoint_score_order="max",
            ),
        ),
    )
    listening = _Listening(mailbox, listener)
    with listening:
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobFailedError(
                f"Training stopped: {_cause(error)} Run again with --verbose for the workers' "
                "output."
            ) from error
    if listening.stopped:
        raise JobFailedError(
            f"Training stopped: {listening.stopped}; lower --learning-rate. The checkpoints up to "
            f"there are in {result.path}."
        )
    return _bring_home(result, module)


def _bring_home(result: Any, module: nn.Module) -> TrainedWeights:
    checkpoint, metrics = max(result.best_checkpoints, key=lambda pair: pair[1][SELECTION_METRIC])
    with checkpoint.as_directory() as folder:
        load_weights(Path(folder), module)
    return TrainedWeights(dict(metrics), str(result.path))


def _cause(error: BaseException) -> str:
    """Return the line that says what went wrong in a worker."""
    failures = getattr(error, "worker_failures", None)
    first = next(iter(failures.values())) if failures else error
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return (lines[-1] if lines else type(first).__name__).rstrip(".") + "."


class _Listening:
    """Empties the mailbox into a listener while the driver waits for the workers."""

    def __init__(self, mailbox: Any, listener: Listener) -> None:
        self._mailbox, self._listener = mailbox, listener
        self._over = threading.Event()
        self.stopped = ""
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
                report = self._mailbox.get(timeout=0.5)
            except Empty:
                if self._over.is_set():
                    return
            else:
                self.stopped = self.stopped or report.stopped
                self._listener(report)
