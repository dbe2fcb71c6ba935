"""Runs training workers through Ray Train and restarts them after failures."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from eagleray.core.errors import JobFailedError
from eagleray.core.job_channel import process_channel
from eagleray.core.ray_errors import read_failure
from eagleray.core.ray_private import lean_torch_trainer, post_message, take_messages
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import read_settings
from eagleray.io import storage
from eagleray.training.callback import Decision
from eagleray.training.events import DecisionRequested, LossNotFinite, TrainEvent
from eagleray.training.extension import reopened
from eagleray.training.loop.checkpoint import CheckpointStore
from eagleray.training.loop.distributed import DistributedContext, join_process_group
from eagleray.training.resources import uses_gpu, worker_resources
from eagleray.training.spec import TrainSpec
from eagleray.training.worker_input import WorkerInput

__all__ = ["describe_stop", "run_training", "run_workers"]

_MAX_RESTARTS_WITHOUT_PROGRESS = 2
_POLL_SECONDS = 0.1

OnEvent = Callable[[TrainEvent], None]
Decide = Callable[[Sequence[dict[str, float]]], Decision]
Work = Callable[[WorkerInput, DistributedContext, OnEvent], None]


def run_training(
    worker_input: WorkerInput,
    *,
    ray_folder: str,
    cluster: Cluster,
    on_event: OnEvent,
    decide: Decide | None = None,
) -> None:
    """Train to the end of the run; workers that die are restarted from the last checkpoint.

    Args:
        worker_input: Input of every worker.
        ray_folder: Folder of Ray Train's own state.
        cluster: Cluster to run on.
        on_event: Receives every event, in a thread.
        decide: Decides what follows an epoch, in the same thread; None to train to the end.

    Raises:
        JobFailedError: If a loss is not finite, or workers die repeatedly without progress.
    """
    store = CheckpointStore(worker_input.checkpoint_folder)
    progress = store.progress()
    if progress is not None and progress.ended and not reopened(progress, worker_input.extensions):
        return  # the run was killed during its test
    with _deciding(decide, on_event) as (work, receive):
        _run_to_end(work, store, worker_input, ray_folder, cluster, receive)


def _run_to_end(
    work: Work,
    store: CheckpointStore,
    worker_input: WorkerInput,
    ray_folder: str,
    cluster: Cluster,
    on_event: OnEvent,
) -> None:
    """Run the workers until training is complete, or they make no progress.

    Raises:
        JobFailedError: If a loss is not finite, or workers die repeatedly without progress.
    """
    while True:
        newest = store.names()[:1]
        failure = run_workers(
            work, worker_input, ray_folder=ray_folder, cluster=cluster, on_event=on_event
        )
        if failure is None:
            return
        if isinstance(failure, LossNotFinite):
            raise JobFailedError(describe_stop(failure, worker_input))
        if store.names()[:1] == newest:
            raise JobFailedError(
                f"Training stopped: {failure} Run again with --verbose for the workers' output, "
                f"or resume with `eagleray train --resume {worker_input.run}`."
            )


def _train(
    worker_input: WorkerInput,
    context: DistributedContext,
    report: OnEvent,
    await_decision: Callable[[int], Decision] | None = None,
) -> None:
    """Train as one of several workers; the driver need not import the training loop."""
    from eagleray.training.loop.trainer import train

    train(worker_input, context, report, await_decision)


def describe_stop(stop: LossNotFinite, worker_input: WorkerInput) -> str:
    """Describe where the loss was not finite, and what to do."""
    shown = ", ".join(stop.images[:4]) + (", …" if len(stop.images) > 4 else "")
    kept = (
        f"the last checkpoint is {storage.join(worker_input.checkpoint_folder, stop.checkpoint)}"
        if stop.checkpoint
        else "there is no checkpoint yet"
    )
    return (
        f"Training stopped: the loss of step {stop.step} of epoch {stop.epoch} is not a finite "
        f"number. Lower --learning-rate ({worker_input.spec.learning_rate:g}), or set "
        f"--max-grad-norm. The step's {len(stop.images)} images are {shown}; {kept}."
    )


def run_workers(
    work: Work, worker_input: WorkerInput, *, ray_folder: str, cluster: Cluster, on_event: OnEvent
) -> LossNotFinite | str | None:
    """Run a function on all workers; return why they stopped before its end, if they did.

    Args:
        work: Function that every worker runs.
        worker_input: Input of every worker.
        ray_folder: Folder of Ray Train's own state.
        cluster: Cluster to run on.
        on_event: Receives every event, in a thread.

    Raises:
        Exception: The first one of `on_event`, when the workers have ended.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    spec = worker_input.spec
    if storage.is_folder(ray_folder):
        storage.remove_tree(ray_folder)  # Ray would resume from the state of dead workers
    channel = secrets.token_hex(8)
    trainer = lean_torch_trainer(embedded=cluster.embedded)(
        _run_worker,
        train_loop_config={
            "work": work,
            "input": ray.put(worker_input),
            "channel": channel,
            "extensions": read_settings().extensions,
        },
        scaling_config=ScalingConfig(
            num_workers=_num_workers(spec),
            use_gpu=uses_gpu(spec, cluster),
            resources_per_worker=worker_resources(spec, cluster),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=ray_folder,
            failure_config=FailureConfig(max_failures=_MAX_RESTARTS_WITHOUT_PROGRESS),
        ),
    )
    held = worker_resources(spec, cluster)
    process_channel().hold(
        cores=spec.min_workers * held.get("CPU", 0.0), gpus=spec.min_workers * held.get("GPU", 0.0)
    )
    gc.collect()  # workers of an earlier batch job in this process may hold cores in a cycle
    with _EventReceiver(channel, on_event) as receiver:
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return read_failure(error).sentence
    if receiver.error is not None:
        raise receiver.error
    return receiver.stop


@contextlib.contextmanager
def _deciding(decide: Decide | None, on_event: OnEvent) -> Iterator[tuple[Work, OnEvent]]:
    """Provide the work of a worker and a receiver of events that decides what follows an epoch."""
    if decide is None:
        yield _train, on_event
        return
    channel = secrets.token_hex(8)

    def receive(event: TrainEvent) -> None:
        if isinstance(event, DecisionRequested):
            post_message(channel, pickle.dumps((len(event.epochs), decide(event.epochs))))
        else:
            on_event(event)

    yield functools.partial(_train, await_decision=_DecisionReader(channel)), receive


class _DecisionReader:
    """Reads the driver's decisions on a worker.

    The decisions for a worker that has died may still be in the channel.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel

    def __call__(self, epoch: int) -> Decision:
        while True:
            for content in take_messages(self._channel):
                of_epoch, decision = pickle.loads(content)  # noqa: S301 - the driver's
                if of_epoch == epoch:
                    return cast("Decision", decision)
            time.sleep(_POLL_SECONDS)


def _run_worker(config: dict[str, Any]) -> None:
    """Run the function of a worker; started by Ray Train.

    Args:
        config: `work`: the function; `input`: reference of its input; `channel`: channel of events;
            `extensions`: the driver's setting, which a Ray that was started before may lack.
    """
    import ray

    os.environ["EAGLERAY_EXTENSIONS"] = config["extensions"]

    def post(event: TrainEvent) -> None:
        post_message(config["channel"], pickle.dumps(event))

    config["work"](ray.get(config["input"]), join_process_group(), post)


def _num_workers(spec: TrainSpec) -> int | tuple[int, int]:
    """Return the number of workers, or the range that Ray Train scales in (elastic)."""
    if spec.min_workers == spec.max_workers:
        return spec.max_workers
    return spec.min_workers, spec.max_workers


class _EventReceiver:
    """Passes the events of a channel to a callback, in a thread, while the driver waits.

    Attributes:
        stop: The event of a loss that is not finite, if there was one.
        error: First exception of the callback; the events that follow are still passed on, as
            workers may wait for what one of them brings about.
    """

    def __init__(self, channel: str, on_event: OnEvent) -> None:
        self._channel, self._on_event = channel, on_event
        self._closed = threading.Event()
        self.stop: LossNotFinite | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def __enter__(self) -> _EventReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _receive(self) -> None:
        is_closed = False
        while not is_closed:
            is_closed = self._closed.wait(_POLL_SECONDS)  # before the last events are taken
            for content in take_messages(self._channel):
                event: TrainEvent = pickle.loads(content)  # noqa: S301 - from our own worker
                if isinstance(event, LossNotFinite):
                    self.stop = event
                try:
                    self._on_event(event)
                except Exception as error:  # noqa: BLE001 - raised when the workers have ended
                    self.error = self.error or error
