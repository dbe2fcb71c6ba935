"""Compares a finished training run with an undisturbed one: losses, metrics and weights."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagleray.core.settings import Settings
from eagleray.registry.registry import Registry
from eagleray.training.loop.checkpoint import CheckpointStore
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.train import MODEL, RunFolder
from tests.support.numerics import SAME_LOSS
from tests.support.processes import in_child

_THROUGHPUT = ("images_per_second", "waiting_for_data", "waiting_for_checkpoints")


@dataclass(frozen=True)
class Curve:
    """The result of a run.

    Attributes:
        losses: Loss of every step, float32 array.
        epochs: Metrics of every epoch, without throughput.
        weights: All tensors of the last checkpoint but `losses`, concatenated, float32 array.
        test: Metrics on the test split.
        versions: Number of versions that the run registered.
        logged: Number of times that each epoch was logged to MLflow.
    """

    losses: Any
    epochs: list[dict[str, float]]
    weights: Any
    test: dict[str, float]
    versions: int
    logged: list[int]


def read_curve(home: Path, run: RunFolder, file: Path) -> Curve:
    """Read the result of a finished run in a child process, which passes it on in a file."""

    def read() -> None:
        file.write_bytes(pickle.dumps(_read(home, run)))

    in_child(read)
    curve: Curve = pickle.loads(file.read_bytes())
    return curve


def _read(home: Path, run: RunFolder) -> Curve:
    checkpoint = CheckpointStore(str(run.checkpoints)).latest()
    assert checkpoint is not None
    registry = Registry(Settings(home=home))
    tracked = run.record()["mlflow_run"]
    versions = [item for item in registry.versions(MODEL) if item.run_id == tracked]
    history = registry.client.get_metric_history(tracked, "validation_loss")
    steps = [item.step for item in history]
    values = [
        checkpoint.tensors[name].numpy().ravel()
        for name in sorted(checkpoint.tensors)
        if name != "losses"
    ]
    registry.load(versions[0])  # verified by its digest
    return Curve(
        losses=checkpoint.tensors["losses"].numpy(),
        epochs=[
            {key: value for key, value in epoch.items() if key not in _THROUGHPUT}
            for epoch in checkpoint.progress.epochs
        ],
        weights=np.concatenate([value.astype(np.float32) for value in values]),
        test=registry.evaluations(versions[0])[0].metrics,
        versions=len(versions),
        logged=[steps.count(epoch + 1) for epoch in range(len(checkpoint.progress.epochs))],
    )


@dataclass
class LargestDifferences:
    """Largest differences over all runs so far."""

    loss: float = 0.0
    metric: float = 0.0
    weight: float = 0.0
    test: float = 0.0

    def __str__(self) -> str:
        return (
            f"largest difference of a loss {self.loss:.3g}, of a validation metric "
            f"{self.metric:.3g}, of a weight {self.weight:.3g}, of a test metric {self.test:.3g}"
        )


def compare(
    result: ScenarioResult, largest: LargestDifferences, found: Curve, undisturbed: Curve
) -> None:
    """Compare a finished run with the undisturbed one, and count the differences."""
    result.outputs += 1
    result.rows += len(found.losses)
    result.lost += max(0, len(undisturbed.losses) - len(found.losses))
    result.doubled += max(0, found.versions - 1)
    shared = min(len(found.losses), len(undisturbed.losses))
    difference = np.abs(found.losses[:shared] - undisturbed.losses[:shared])
    result.different += int((difference > SAME_LOSS * np.abs(undisturbed.losses[:shared])).sum())
    largest.loss = max(largest.loss, float(difference.max(initial=0.0)))
    for epoch, expected in zip(found.epochs, undisturbed.epochs, strict=True):
        largest.metric = max(largest.metric, _largest_difference(epoch, expected))
    largest.test = max(largest.test, _largest_difference(found.test, undisturbed.test))
    largest.weight = max(largest.weight, float(np.abs(found.weights - undisturbed.weights).max()))
    if max(largest.metric, largest.test, largest.weight) > SAME_LOSS:
        result.faults.append(f"a run differs: {largest}")
    if set(found.logged) != {1}:
        result.faults.append(f"the epochs were logged to MLflow so often: {found.logged}")


def _largest_difference(found: dict[str, float], expected: dict[str, float]) -> float:
    assert found.keys() == expected.keys()
    return max(abs(found[name] - expected[name]) for name in expected)
