"""Builders that tests of evaluations share: random answers, and evaluations without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from eagleray.data.encoding import encode_targets
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.evaluate import Evaluation, FailedImage
from eagleray.tasks import Binary, Multiclass, Multilabel, Regression, Task

CLASSES = Multiclass(labels=("cat", "dog", "owl"))
DEFECTS = Binary(labels=("fine", "defect"), threshold=0.3)
TAGS = Multilabel(labels=("red", "round", "sweet"), thresholds=(0.3, 0.5, 0.7))
WEIGHT = Regression(mean=50.0, std=20.0)
TASKS: tuple[Task, ...] = (CLASSES, DEFECTS, TAGS, WEIGHT)


def logits_of(
    task: Task, num_images: int, *, seed: int = 0, skill: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return raw logits and targets that go along with them, the better the more skill."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_images, task.num_outputs, generator=generator)
    if isinstance(task, Multiclass):
        # Rare classes: each one is half as common as the one before.
        weights = 0.5 ** torch.arange(len(task.labels))
        targets = torch.multinomial(weights, num_images, replacement=True, generator=generator)
        return noise + skill * torch.nn.functional.one_hot(targets, len(task.labels)), targets
    if isinstance(task, Regression):
        targets = torch.randn(num_images, generator=generator)
        return skill * targets[:, None] + 0.3 * noise, targets
    shape = (num_images,) if isinstance(task, Binary) else (num_images, len(task.labels))
    targets = (torch.rand(shape, generator=generator) < 0.2).float()
    return noise + skill * (2 * targets.reshape(num_images, -1) - 1), targets


def answers_of(
    task: Task, num_images: int, *, seed: int = 0, skill: float = 1.0, ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Return outputs and targets; with ties, scores are rounded so that many are equal."""
    logits, targets = logits_of(task, num_images, seed=seed, skill=skill)
    outputs = task.activate((logits * 2).round() / 2 if ties else logits)
    return outputs.float(), targets


def text_of(task: Task, target: Tensor) -> str:
    if isinstance(task, Regression):
        return repr(float(target) * task.std + task.mean)
    if isinstance(task, Multilabel):
        return "|".join(
            label for label, held in zip(task.labels, target.tolist(), strict=True) if held
        )
    return task.labels[int(target)]


def evaluation_of(
    task: Task,
    outputs: Tensor,
    targets: Tensor,
    *,
    attributes: Mapping[str, Sequence[str]] | None = None,
    failures: tuple[FailedImage, ...] = (),
) -> Evaluation:
    """Make an evaluation in which the failed images stand behind the measured ones."""
    num_images = len(targets) + len(failures)
    texts = [text_of(task, target) for target in targets]
    texts += [texts[0]] * len(failures)
    images = LabelledImages(
        tuple(f"/images/{row}.png" for row in range(num_images)),
        tuple(texts),
        ("1",) * num_images,
        {name: tuple(values) for name, values in (attributes or {}).items()},
    )
    torch.testing.assert_close(
        encode_targets(task, images)[: len(targets)],
        targets,
        check_dtype=False,
        rtol=1e-4,
        atol=1e-4,
    )
    rows = np.arange(len(targets))
    return Evaluation(task, images, rows, outputs, targets, failures)
