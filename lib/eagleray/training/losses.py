"""What training minimises: a value for each image, so that any share of a batch can be summed.

cross_entropy   multiclass, with label smoothing
bce             binary cross-entropy on logits; binary, multilabel (the mean over labels)
focal           what is easy counts less (Lin et al. 2017, equation 4, without alpha)
mse             mean squared error in units of the training table's spread
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Task, split_labels
from eagleray.training.spec import TrainSpec

__all__ = ["ImageLosses", "class_weights", "make_losses", "soft_targets"]

ImageLosses = Callable[[Tensor, Tensor], Tensor]
"""logits (N, num_outputs), targets (N,) or (N, num_labels) -> losses (N,)"""


def make_losses(spec: TrainSpec, task: Task, texts: Sequence[str]) -> ImageLosses:
    """Return the losses of a specification.

    Args:
        spec: Names the loss and its parameters.
        task: What the model answers.
        texts: Labels of the training part, for class weights.
    """
    weights = class_weights(task, texts) if spec.class_weights == "balanced" else None
    gamma = spec.focal_gamma if spec.used_loss == "focal" else 0.0
    if isinstance(task, Multiclass):
        return _multiclass(weights, gamma, spec.label_smoothing)
    if isinstance(task, (Binary, Multilabel)):
        return _independent(weights, gamma)
    return lambda logits, targets: (logits.squeeze(1) - targets).square()


def _multiclass(weights: Tensor | None, gamma: float, smoothing: float) -> ImageLosses:
    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        placed = None if weights is None else weights.to(logits.device)
        values = functional.cross_entropy(
            logits, targets, weight=placed, reduction="none", label_smoothing=smoothing
        )
        if gamma == 0:
            return values
        probabilities = logits.softmax(dim=1)
        if targets.is_floating_point():  # mixed images
            true = (probabilities * targets).sum(dim=1)
        else:
            true = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        return (1 - true).clamp_min(0).pow(gamma) * values

    return losses


def _independent(weights: Tensor | None, gamma: float) -> ImageLosses:
    """Losses of labels that hold or not, each on its own; weights are those of positives."""

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.reshape(len(logits), -1)
        placed = None if weights is None else weights.to(logits.device)
        values = functional.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=placed, reduction="none"
        )
        if gamma:
            positive = logits.sigmoid()
            true = positive * wanted + (1 - positive) * (1 - wanted)
            values = (1 - true).pow(gamma) * values
        return values.mean(dim=1)

    return losses


def class_weights(task: Task, texts: Sequence[str]) -> Tensor:
    """Return weights with which every class counts as much as any other.

    Args:
        task: What the model answers.
        texts: Labels of the training part.

    Returns:
        float32 tensor: for multiclass (num_labels,), `N / (num_labels * count)`, 1 on average over
        the images; else (num_outputs,) of each label's negatives for a positive.
    """
    if isinstance(task, Multiclass):
        counts = Counter(texts)
        present = [max(1, counts[label]) for label in task.labels]
        return torch.tensor([len(texts) / (len(present) * count) for count in present])
    if isinstance(task, Binary):
        positives = max(1, sum(text == task.labels[1] for text in texts))
        return torch.tensor([(len(texts) - positives) / positives])
    held = Counter(label for text in texts for label in split_labels(text))
    present = [max(1, held[label]) for label in task.labels]
    return torch.tensor([(len(texts) - count) / count for count in present])


def soft_targets(task: Task, targets: Tensor) -> Tensor:
    """Turn targets into a form that can be mixed: probabilities of labels, or numbers."""
    if isinstance(task, Multiclass):
        return functional.one_hot(targets, len(task.labels)).float()
    return targets
