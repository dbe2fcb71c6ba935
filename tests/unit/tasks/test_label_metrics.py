"""Figures of each task against scikit-learn, torchmetrics, and numbers computed by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as other
from torchmetrics.functional import regression as other_regression

from eagleray.tasks import Binary, Multiclass, Multilabel, Regression, Task
from eagleray.training.loop.metrics import TaskMetrics
from tests.support.evaluation import CLASSES, DEFECTS, TAGS, TASKS, WEIGHT, answers_of

pytestmark = pytest.mark.numerical

SIX = Multiclass(labels=("a", "b", "c", "d", "e", "f", "g"))
KINDS = pytest.mark.parametrize("ties", [False, True])


# --- multiclass -------------------------------------------------------------------------------


@KINDS
def test_multiclass_equals_scikit_learn_and_torchmetrics(ties: bool) -> None:
    outputs, targets = answers_of(SIX, 600, ties=ties)
    figures = SIX.measure(outputs, targets)
    truth, answers = targets.numpy(), outputs.numpy().argmax(axis=1)
    assert figures["accuracy"] == pytest.approx(reference.accuracy_score(truth, answers))
    assert figures["error"] == pytest.approx(1 - figures["accuracy"])
    for average in ("macro", "micro", "weighted"):
        expected = reference.precision_recall_fscore_support(
            truth, answers, average=average, zero_division=0
        )[:3]
        got = [figures[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(expected)
    per_class = reference.precision_recall_fscore_support(truth, answers, zero_division=0)[:3]
    for name, values in zip(("precision", "recall", "f1"), per_class, strict=True):
        assert [figures[f"{name}[{label}]"] for label in SIX.labels] == pytest.approx(values)
    areas = other.multiclass_auroc(outputs, targets, 7, average=None)
    assert [figures[f"roc_auc[{one}]"] for one in SIX.labels] == pytest.approx(areas.tolist())
    assert figures["roc_auc_macro"] == pytest.approx(areas.mean().item())
    precisions = other.multiclass_average_precision(outputs, targets, 7, average=None)
    got = [figures[f"average_precision[{one}]"] for one in SIX.labels]
    assert got == pytest.approx(precisions.tolist(), rel=1e-5)
    assert figures["average_precision_macro"] == pytest.approx(precisions.mean().item(), rel=1e-5)
    probabilities = torch.nn.functional.normalize(outputs.double(), p=1).numpy()
    expected_loss = reference.log_loss(truth, probabilities)
    assert figures["log_loss"] == pytest.approx(expected_loss, rel=1e-5)
    expected_ece = other.multiclass_calibration_error(outputs, targets, 7, n_bins=15)
    assert figures["ece"] == pytest.approx(expected_ece.item(), rel=1e-4)
    if not ties:  # scikit-learn takes the last of equals, we the first, as predictions do
        expected_top = reference.top_k_accuracy_score(truth, outputs.numpy(), k=5)
        assert figures["top5_accuracy"] == pytest.approx(expected_top)
        assert figures["top5_error"] == pytest.approx(1 - expected_top)


def test_of_equal_scores_the_first_labels_are_in_the_top_five() -> None:
    outputs, targets = torch.full((7, 7), 1 / 7), torch.arange(7)
    assert SIX.measure(outputs, targets)["top5_accuracy"] == pytest.approx(5 / 7)
    assert SIX.measure(outputs, targets)["accuracy"] == pytest.approx(1 / 7)


def test_a_class_without_images_has_no_metrics_and_is_in_no_average() -> None:
    outputs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    figures = CLASSES.measure(outputs, torch.tensor([0, 0, 1, 1]))
    assert "recall[owl]" not in figures
    assert "roc_auc[owl]" not in figures
    assert figures["recall[cat]"] == 0.5
    assert figures["recall_macro"] == pytest.approx((0.5 + 1) / 2)
    assert figures["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)
    expected = reference.f1_score([0, 0, 1, 1], [0, 2, 1, 1], labels=[0, 1], average="macro")
    assert figures["f1_macro"] == pytest.approx(expected)


def test_one_class_alone_is_not_ranked() -> None:
    outputs, targets = answers_of(CLASSES, 20)[0], torch.ones(20, dtype=torch.int64)
    figures = CLASSES.measure(outputs, targets)
    assert not [name for name in figures if name.startswith(("roc_auc", "average_precision"))]
    assert figures["recall_macro"] == figures["recall[dog]"] == figures["accuracy"]


def test_a_probability_of_zero_costs_much_and_not_everything() -> None:
    figures = CLASSES.measure(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([2]))
    assert figures["log_loss"] == pytest.approx(-math.log(np.finfo(np.float32).eps))


# --- binary -----------------------------------------------------------------------------------


@KINDS
def test_binary_equals_scikit_learn_and_torchmetrics(ties: bool) -> None:
    outputs, targets = answers_of(DEFECTS, 500, ties=ties)
    figures = DEFECTS.measure(outputs, targets)
    truth, scores = targets.int().numpy(), outputs[:, 1].numpy()
    answers = scores >= DEFECTS.threshold
    expected = {
        "accuracy": reference.accuracy_score(truth, answers),
        "precision": reference.precision_score(truth, answers),
        "recall": reference.recall_score(truth, answers),
        "f1": reference.f1_score(truth, answers),
        "specificity": reference.recall_score(truth, answers, pos_label=0),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, answers),
        "precision[defect]": reference.precision_score(truth, answers),
        "recall[defect]": reference.recall_score(truth, answers),
        "f1[defect]": reference.f1_score(truth, answers),
        "precision[fine]": reference.precision_score(truth, answers, pos_label=0),
        "recall[fine]": reference.recall_score(truth, answers, pos_label=0),
        "f1[fine]": reference.f1_score(truth, answers, pos_label=0),
        "average_precision": other.binary_average_precision(outputs[:, 1], targets.int()).item(),
        "roc_auc": other.binary_auroc(outputs[:, 1], targets.int()).item(),
        "log_loss": reference.log_loss(truth, scores.astype(float)),
        "ece": other.binary_calibration_error(outputs[:, 1], targets.int(), n_bins=15).item(),
    }
    assert figures == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("threshold", "recall"), [(0.5, 1.0), (0.6, 0.5)])
def test_binary_counts_a_score_that_equals_the_threshold(threshold: float, recall: float) -> None:
    task = Binary(labels=("no", "yes"), threshold=threshold)
    outputs, targets = torch.tensor([[0.5, 0.5], [0.4, 0.6]]), torch.tensor([1.0, 1.0])
    assert task.measure(outputs, targets)["recall"] == recall
    metrics = TaskMetrics(task)
    metrics.update(outputs, targets)
    assert metrics.compute()["accuracy"] == recall  # training sees it likewise


def test_binary_without_positives_says_what_can_be_said() -> None:
    outputs = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    figures = DEFECTS.measure(outputs, torch.tensor([0.0, 0.0]))
    assert figures["accuracy"] == figures["specificity"] == figures["recall[fine]"] == 0.5
    assert {"recall", "f1", "precision", "roc_auc", "recall[defect]"}.isdisjoint(figures)


# --- multilabel -------------------------------------------------------------------------------


@KINDS
def test_multilabel_equals_scikit_learn_and_torchmetrics(ties: bool) -> None:
    outputs, targets = answers_of(TAGS, 500, ties=ties)
    figures = TAGS.measure(outputs, targets)
    truth = targets.int().numpy()
    answers = outputs.numpy() >= np.asarray(TAGS.thresholds, np.float32)
    assert figures["accuracy"] == pytest.approx(reference.accuracy_score(truth, answers))
    assert figures["hamming_loss"] == pytest.approx(reference.hamming_loss(truth, answers))
    for average in ("macro", "micro"):
        expected = reference.precision_recall_fscore_support(truth, answers, average=average)[:3]
        got = [figures[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(expected)
    for name, score in [("precision", 0), ("recall", 1), ("f1", 2)]:
        values = reference.precision_recall_fscore_support(truth, answers)[score]
        assert [figures[f"{name}[{label}]"] for label in TAGS.labels] == pytest.approx(values)
    areas = other.multilabel_auroc(outputs, targets.int(), 3, average=None)
    assert [figures[f"roc_auc[{one}]"] for one in TAGS.labels] == pytest.approx(areas.tolist())
    precisions = other.multilabel_average_precision(outputs, targets.int(), 3, average="macro")
    assert figures["average_precision_macro"] == pytest.approx(precisions.item(), rel=1e-5)
    flat = other.binary_calibration_error(outputs.ravel(), targets.int().ravel(), n_bins=15)
    assert figures["ece"] == pytest.approx(flat.item(), rel=1e-4)


def test_labels_that_no_image_or_every_image_has() -> None:
    outputs = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.9, 0.9]])
    figures = TAGS.measure(outputs, torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    assert {"recall[sweet]", "roc_auc[sweet]", "roc_auc[round]"}.isdisjoint(figures)
    assert figures["recall_macro"] == figures["roc_auc_macro"] == figures["roc_auc[red]"] == 1.0
    assert figures["accuracy"] == 0.5
    assert figures["precision_micro"] == 3 / 4
    nothing = TAGS.measure(outputs, torch.zeros(2, 3))
    assert set(nothing) == {"accuracy", "hamming_loss", "ece"}


def test_a_single_label_is_a_multilabel_task_too() -> None:
    task = Multilabel(labels=("red",), thresholds=(0.5,))
    outputs, targets = torch.tensor([[0.9], [0.6], [0.2]]), torch.tensor([[1.0], [0.0], [1.0]])
    figures = task.measure(outputs, targets)
    assert figures["f1_macro"] == figures["f1[red]"] == figures["f1_micro"] == pytest.approx(1 / 2)
    assert figures["accuracy"] == pytest.approx(1 / 3)


# --- regression -------------------------------------------------------------------------------


def test_regression_equals_torchmetrics() -> None:
    outputs, targets = answers_of(WEIGHT, 400)
    figures = WEIGHT.measure(outputs, targets)
    values, truth = outputs[:, 0].double(), targets.double() * WEIGHT.std + WEIGHT.mean
    expected = {
        "r2": other_regression.r2_score(values, truth),
        "mean_absolute_error": other_regression.mean_absolute_error(values, truth),
        "root_mean_squared_error": other_regression.mean_squared_error(
            values, truth, squared=False
        ),
        "median_absolute_error": (values - truth).abs().quantile(0.5),
        "max_error": (values - truth).abs().max(),
        "mean_absolute_percentage_error": ((values - truth) / truth).abs().mean(),
        "pearson": other_regression.pearson_corrcoef(values, truth),
    }
    wanted = {name: value.item() for name, value in expected.items()}
    assert figures == pytest.approx(wanted, rel=1e-5)


def test_no_percentage_of_nothing() -> None:
    task = Regression(mean=127.3, std=70.1)
    targets = torch.tensor([task.encode("0"), task.encode("200")])
    figures = task.measure(torch.tensor([[10.0], [180.0]]), targets)
    assert "mean_absolute_percentage_error" not in figures
    assert figures["mean_absolute_error"] == pytest.approx(15.0)


def test_numbers_that_are_all_the_same() -> None:
    flat = WEIGHT.measure(torch.tensor([[10.0], [20.0]]), torch.tensor([0.5, 0.5]))
    assert {"r2", "pearson"}.isdisjoint(flat)
    constant = WEIGHT.measure(torch.full((3, 1), 50.0), torch.tensor([-1.0, 0.0, 1.0]))
    assert constant["pearson"] == 0.0
    assert constant["r2"] == pytest.approx(0.0)


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*TASKS, SIX], ids=lambda task: task.name)
def test_names_are_known_before_anything_is_measured(task: Task) -> None:
    outputs, targets = answers_of(task, 300)
    assert tuple(task.measure(outputs, targets)) == task.measured_names()
    assert set(task.headline_names) <= set(task.measured_names())
    assert set(task.metric_names) <= set(task.measured_names())
    assert task.headline_names[0] == task.metric_names[0]


@settings(max_examples=60)
@given(st.sampled_from(TASKS), st.integers(1, 6), st.integers(0, 10_000))
def test_however_few_images_there_are_every_figure_is_a_number(
    task: Task, num_images: int, seed: int
) -> None:
    outputs, targets = answers_of(task, num_images, seed=seed, ties=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = task.measure(outputs, targets)
    assert tuple(figures) == task.measured_names(targets)
    assert all(math.isfinite(value) for value in figures.values())


# --- while training ---------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_what_training_follows_is_what_is_measured_in_the_end(task: Task) -> None:
    outputs, targets = answers_of(task, 300)
    metrics = TaskMetrics(task)
    for part in (slice(0, 100), slice(100, None)):
        metrics.update(outputs[part], targets[part])
    figures = task.measure(outputs, targets)
    found = metrics.compute()
    assert tuple(found) == task.metric_names
    for name, value in found.items():
        assert value == pytest.approx(figures[name], rel=1e-4)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_training_can_follow_whatever_is_measured(task: Task) -> None:
    outputs, targets = answers_of(task, 300)
    figures = task.measure(outputs, targets)
    for name in figures:
        metrics = TaskMetrics(task, name)
        for part in (slice(0, 100), slice(100, None)):
            metrics.update(outputs[part], targets[part])
        assert metrics.compute()[name] == pytest.approx(figures[name], rel=1e-4)
    broken = TaskMetrics(task, name)
    broken.update(torch.full_like(outputs, math.nan), targets)
    assert math.isnan(broken.compute()[name])


def test_where_thresholds_are_to_be_chosen_decisions_are_by_the_best_ones() -> None:
    task = Multilabel(labels=("a", "b"), thresholds=(0.5, 0.5))
    outputs = torch.tensor([[0.1, 0.9], [0.2, 0.9], [0.3, 0.6], [0.4, 0.7]])
    targets = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found = []
    for chosen in (False, True):
        metrics = TaskMetrics(task, choose_thresholds=chosen)
        metrics.update(outputs, targets)
        found.append(metrics.compute()["f1_macro"])
    assert found == pytest.approx([(0 + 2 / 3) / 2, 1.0])


# --- reliability ------------------------------------------------------------------------------


def test_the_calibration_error_by_hand() -> None:
    task = Binary(labels=("no", "yes"))
    scores = torch.tensor([0.05, 0.05, 0.95, 0.95])
    outputs, targets = torch.stack([1 - scores, scores], dim=1), torch.tensor([0.0, 1.0, 1.0, 1.0])
    found = task.reliability(outputs, targets, num_bins=10)
    assert found.counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (found.frequency[0], found.frequency[9]) == (0.5, 1.0)
    assert found.error == pytest.approx((0.45 * 2 + 0.05 * 2) / 4)


@pytest.mark.parametrize(("score", "place"), [(0.0, 0), (0.2, 0), (0.21, 1), (1.0, 4)])
def test_a_bin_contains_its_upper_edge(score: float, place: int) -> None:
    task = Multilabel(labels=("a",), thresholds=(0.5,))
    outputs = torch.tensor([[score]], dtype=torch.float64)
    found = task.reliability(outputs, torch.ones(1, 1), num_bins=5)
    assert np.flatnonzero(found.counts).tolist() == [place]
