"""Compares quantized graphs with the float network on held-out images, a batch at a time.

A batch of outputs with values for every pixel takes much memory, so of most images only summaries,
observations for the metric, or predictions are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.compression.calibration import SampleImages
from eagleray.compression.nncf_backend import GraphRunner
from eagleray.models.package import ModelPackage
from eagleray.tasks import NetworkOutput, Prediction, Task
from eagleray.tasks.base import Targets
from eagleray.tasks.padding import join_padded

__all__ = ["HeldOutComparison", "HeldOutLoss"]

_BATCH_SIZE = 16
_MAX_RANKED = 64  # images by which layers are ranked
_MAX_RANKED_VALUES = 2**26  # of their outputs, which are kept

Logits = dict[str, npt.NDArray[np.float32]]
"""Outputs of a network (N, …) by name."""


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """What a graph loses on held-out images.

    Attributes:
        drop: By how much its score is lower than that of the float network.
        max_difference: Largest difference of a summary of outputs from the float network's.
    """

    drop: float
    max_difference: float


class HeldOutComparison:
    """Compares graphs with the float network.

    Args:
        package: The package of the float network.
        images: The held-out images.
        content: The float network as an ONNX file.
    """

    def __init__(self, package: ModelPackage, images: SampleImages, content: bytes) -> None:
        self._task, self._images = package.task, images
        self._names = tuple(self._task.network_outputs)
        by_values = _MAX_RANKED_VALUES // self._task.num_activated(package.contract)
        self._num_ranked = min(len(images), _MAX_RANKED, max(1, by_values))
        self._summaries: list[Tensor] = []
        self._predictions: list[Prediction] = []
        self._float_score = 1.0
        runner = GraphRunner(content)
        self._logits = runner.run(images.inputs(0, self._num_ranked), self._names)
        self._measure_float(runner)

    def _measure_float(self, runner: GraphRunner) -> None:
        """Keep what graphs are compared with."""
        score = None if self._images.targets is None else self._new_score()
        for rows, outputs in self._batches(runner):
            self._summaries.append(self._task.summarize(outputs))
            if score is None:
                self._predictions += self._predict(outputs, rows)
            else:
                score.add(outputs, rows)
        if score is not None:
            self._float_score = score.value()

    @property
    def score_name(self) -> str:
        """What is compared: a metric if the labels are known, else predictions."""
        if self._images.targets is not None:
            return self._task.metric_names[0]
        if self._task.similarity_name is not None:
            return f"{self._task.similarity_name} with the float model's predictions"
        return "share of predictions like the float model's"

    @property
    def image_share(self) -> float | None:
        """What one image is of the score; None if that depends on the image."""
        if self._images.targets is None:
            counts_images = self._task.similarity_name is None
        else:
            counts_images = self.score_name == "accuracy"
        return 1 / len(self._images) if counts_images else None

    def compare(self, graph: Any) -> HeldOutLoss:
        """Return what a graph, an `onnx.ModelProto`, loses."""
        score, differences = self._new_score(), []
        batches = self._batches(GraphRunner(graph.SerializeToString()))
        for expected, (rows, outputs) in zip(self._summaries, batches, strict=True):
            found = self._task.summarize(outputs).numpy()
            differences.append(self._task.max_difference(found, expected.numpy()))
            score.add(outputs, rows)
        # One image of a hundred is 0.01, and no more than that.
        drop = round(self._float_score - score.value(), 9)
        return HeldOutLoss(drop, float(np.max(differences)))

    def error(self, graph: Any) -> float:
        """Return the mean squared difference of a graph's outputs from the float network's.

        Several outputs, which have units of their own, count in those of their variance.
        """
        runner = GraphRunner(graph.SerializeToString())
        logits = runner.run(self._images.inputs(0, self._num_ranked), self._names)
        total = 0.0
        for name, own in logits.items():
            expected = self._logits[name]
            error = float(np.square(own - expected).mean())
            total += error if len(logits) == 1 else error / max(float(expected.var()), 1e-12)
        return total

    def _batches(self, runner: GraphRunner) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each batch, and its activated outputs."""
        for start in range(0, len(self._images), _BATCH_SIZE):
            rows = slice(start, min(start + _BATCH_SIZE, len(self._images)))
            logits = runner.run(self._images.inputs(rows.start, rows.stop), self._names)
            yield rows, self._activated(logits)

    def _activated(self, logits: Logits) -> Tensor:
        tensors = {name: torch.from_numpy(array) for name, array in logits.items()}
        several: NetworkOutput = tensors
        outputs = self._task.activate(tensors[self._names[0]] if len(tensors) == 1 else several)
        return self._task.drop_outlier_score(outputs)

    def _predict(self, outputs: Tensor, rows: slice) -> list[Prediction]:
        pairs = zip(outputs.numpy(), self._images.frames[rows], strict=True)
        return [self._task.postprocess(row, frame) for row, frame in pairs]

    def _new_score(self) -> _Score:
        if self._images.targets is not None:
            return _MetricScore(self._task, self._images.targets)
        return _LikenessScore(self)


class _Score(Protocol):
    """Sums up a score of outputs, batch by batch."""

    def add(self, outputs: Tensor, rows: slice) -> None:
        """Add the activated outputs (N, …) of some rows."""

    def value(self) -> float:
        """Return the score of all rows."""


class _MetricScore:
    """The first metric of a task."""

    def __init__(self, task: Task, targets: Targets) -> None:
        self._task, self._targets = task, targets
        self._decisions: list[Tensor] = []
        self._true: list[Tensor] = []

    def add(self, outputs: Tensor, rows: slice) -> None:
        targets = self._targets[np.arange(rows.start, rows.stop)]
        observed, true = self._task.observe_batch(outputs, targets)
        self._decisions.append(self._task.decide(observed))
        self._true.append(true)

    def value(self) -> float:
        joined = join_padded(self._decisions), join_padded(self._true)
        return self._task.training_metrics(*joined)[self._task.metric_names[0]]


class _LikenessScore:
    """How alike predictions are to those of the float network, on average."""

    def __init__(self, compared: HeldOutComparison) -> None:
        self._compared = compared
        self._alike: list[float] = []

    def add(self, outputs: Tensor, rows: slice) -> None:
        task = self._compared._task
        compare = task.same_answer if task.similarity_name is None else task.similarity
        predictions = self._compared._predict(outputs, rows)
        expected = self._compared._predictions[rows]
        self._alike += [float(compare(*pair)) for pair in zip(predictions, expected, strict=True)]

    def value(self) -> float:
        return float(np.mean(self._alike))
