"""The few metrics that are cheap enough to follow while a model learns, over all its workers."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, R2Score

from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Regression, Task

__all__ = ["make_metrics", "metric_inputs"]


def make_metrics(task: Task) -> MetricCollection:
    """Return the metrics of a task; in a distributed run `compute` gathers from all workers."""
    if isinstance(task, Multiclass):
        count = len(task.labels)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "f1_macro": MulticlassF1Score(count, average="macro"),
            }
        )
    if isinstance(task, Binary):
        return MetricCollection({"accuracy": BinaryAccuracy(), "f1": BinaryF1Score()})
    if isinstance(task, Multilabel):
        count = len(task.labels)
        return MetricCollection(
            {
                "f1_macro": MultilabelF1Score(count, average="macro"),
                "accuracy": MultilabelExactMatch(count),
            }
        )
    return MetricCollection({"r2": R2Score(), "mean_absolute_error": MeanAbsoluteError()})


def metric_inputs(task: Task, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Turn activated outputs and encoded targets into what the metrics of `make_metrics` take.

    They get decisions where there are thresholds: torchmetrics has one for all labels, and does not
    count an output that equals it.

    Args:
        task: What the model answers.
        outputs: float32 tensor (N, num_labels) of probabilities, or (N, 1) of values.
        targets: Encoded targets (N, …).
    """
    if isinstance(task, Binary):
        return (outputs[:, 1] >= task.threshold).long(), targets.long()
    if isinstance(task, Multilabel):
        thresholds = torch.tensor(task.thresholds, device=outputs.device)
        return (outputs >= thresholds).long(), targets.long()
    if isinstance(task, Regression):
        return outputs.squeeze(1), targets * task.std + task.mean
    return outputs, targets
