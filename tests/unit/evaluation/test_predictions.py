"""Predictions that are kept beside the record of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eagleray.evaluation import predictions
from eagleray.evaluation.predictions import ImagePredictions, take_common
from eagleray.tasks import Embedding, Multilabel, Task
from tests.support.evaluation import CLASSES, TASKS, WEIGHT, answers_of


def predictions_of(task: Task, count: int = 5) -> ImagePredictions:
    return ImagePredictions(np.arange(count) * 2, *answers_of(task, count))


ONE_TAG = Multilabel(labels=("red",), thresholds=(0.5,))


@pytest.mark.parametrize("task", [*TASKS, ONE_TAG], ids=lambda task: task.name)
def test_predictions_are_read_back_unchanged(task: Task) -> None:
    kept = predictions_of(task)
    content = kept.to_parquet()
    assert content is not None
    found = ImagePredictions.from_parquet(content, task)
    assert found.rows.tolist() == [0, 2, 4, 6, 8]
    torch.testing.assert_close(found.outputs, kept.outputs)
    torch.testing.assert_close(found.targets, kept.targets)
    assert task.measure(found.outputs, found.targets) == task.measure(kept.outputs, kept.targets)


def test_labels_of_embeddings_stay_apart() -> None:
    task = Embedding(dimension=2)
    targets = torch.tensor([2**47 + number for number in range(4)])
    kept = ImagePredictions(np.arange(4), torch.eye(2).repeat(2, 1), targets)
    content = kept.to_parquet()
    assert content is not None
    assert ImagePredictions.from_parquet(content, task).targets.tolist() == targets.tolist()


def test_large_predictions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "MAX_PREDICTION_BYTES", 99)
    assert predictions_of(CLASSES).to_parquet() is None  # 5 rows of 3 probabilities and a target
    monkeypatch.setattr(predictions, "MAX_PREDICTION_BYTES", 100)
    assert predictions_of(CLASSES).to_parquet() is not None


def test_files_that_are_not_predictions_are_refused() -> None:
    content = predictions_of(CLASSES).to_parquet()
    assert content is not None
    with pytest.raises(ValueError, match="regression model with 1 output"):
        ImagePredictions.from_parquet(content, WEIGHT)
    for damaged in (b"", b"PAR1", content[:-20]):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            ImagePredictions.from_parquet(damaged, CLASSES)


def test_two_models_are_compared_on_the_images_that_both_measured() -> None:
    outputs, targets = answers_of(CLASSES, 4)
    first = ImagePredictions(np.array([0, 1, 2, 5]), outputs, targets)
    second = ImagePredictions(np.array([1, 2, 3, 5]), outputs, targets)
    one, other = take_common(first, second, without=np.array([2]))
    assert one.rows.tolist() == other.rows.tolist() == [1, 5]
    torch.testing.assert_close(one.outputs, outputs[[1, 3]])
    torch.testing.assert_close(other.outputs, outputs[[0, 3]])
