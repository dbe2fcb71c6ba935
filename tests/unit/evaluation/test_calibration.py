"""Temperatures and thresholds: found again where they are known, kept with the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from eagleray.core.errors import InputError
from eagleray.evaluation.calibration import at_temperature, fit_temperature, reliability
from eagleray.evaluation.metrics import measure
from eagleray.evaluation.outputs import answered_labels, true_labels
from eagleray.evaluation.thresholds import choose_thresholds
from eagleray.inference.predictor import Predictor
from eagleray.models.package import ModelPackage, read_package, write_package
from eagleray.tasks.tasks import Binary, Multiclass, Multilabel, Task
from tests.support.evaluation import (
    CLASSES,
    DEFECTS,
    TAGS,
    WEIGHT,
    answers_of,
    logits_of,
)
from tests.support.models import DIGITS, golden_png, small_package

pytestmark = pytest.mark.numerical

CLASSIFIERS: tuple[Binary | Multiclass | Multilabel, ...] = (CLASSES, DEFECTS, TAGS)
BY_NAME = pytest.mark.parametrize("task", CLASSIFIERS, ids=lambda task: task.name)


def truthful(task: Task, num_images: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets that are drawn from the probabilities of these very logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_images, task.num_outputs, generator=generator)
    if isinstance(task, Multiclass):
        return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    targets = (torch.rand(logits.shape, generator=generator) < logits.sigmoid()).float()
    return logits, targets[:, 0] if isinstance(task, Binary) else targets


@BY_NAME
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found_again(task: Task, temperature: float) -> None:
    logits, targets = truthful(task, 6000)
    outputs = task.activate(logits * temperature)
    assert fit_temperature(task, outputs, targets) == pytest.approx(temperature, rel=0.08)


@BY_NAME
def test_the_temperature_mends_the_calibration_and_not_the_order(task: Task) -> None:
    logits, targets = truthful(task, 4000)
    outputs = task.activate(logits * 3)
    temperature = fit_temperature(task, outputs, targets)
    mended = at_temperature(task, outputs, temperature)
    before, after = (reliability(task, one, targets).error for one in (outputs, mended))
    assert after < 0.4 * before
    assert after < 0.02
    if isinstance(task, Multiclass):
        np.testing.assert_array_equal(answered_labels(task, outputs), answered_labels(task, mended))
    else:
        areas = [measure(task, one, targets) for one in (outputs, mended)]
        name = "roc_auc" if isinstance(task, Binary) else "roc_auc_macro"
        assert areas[0][name] == pytest.approx(areas[1][name], abs=1e-4)


@BY_NAME
def test_no_temperature_near_it_makes_the_answers_likelier(task: Task) -> None:
    logits, targets = logits_of(task, 3000, skill=0.7)
    best = fit_temperature(task, task.activate(logits), targets)
    losses = [task.loss(logits / (best * factor), targets) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] < min(losses[0], losses[2])


@BY_NAME
@settings(max_examples=20)
@given(temperature=st.floats(0.3, 5.0), other=st.floats(0.3, 5.0), seed=st.integers(0, 99))
def test_outputs_at_another_temperature_are_what_the_task_would_answer(
    task: Binary | Multiclass | Multilabel, temperature: float, other: float, seed: int
) -> None:
    logits, _ = logits_of(task, 20, seed=seed)
    here = task.model_copy(update={"temperature": temperature})
    there = task.model_copy(update={"temperature": other})
    moved = at_temperature(here, here.activate(logits), other)
    torch.testing.assert_close(moved, there.activate(logits), atol=2e-4, rtol=1e-2)


def test_the_temperature_is_the_tasks_new_one_and_not_a_factor() -> None:
    logits, targets = truthful(CLASSES, 3000)
    warm = CLASSES.model_copy(update={"temperature": 2.0})
    fitted = fit_temperature(warm, warm.activate(logits), targets)
    assert fitted == pytest.approx(fit_temperature(CLASSES, CLASSES.activate(logits), targets))


@BY_NAME
def test_a_few_images_without_a_mistake_prove_no_certainty(task: Task) -> None:
    targets = torch.tensor([0, 1, 0, 1] * 5)
    if isinstance(task, Multiclass):
        logits = functional.one_hot(targets, 3).float() * 2
    else:
        logits = (2.0 * targets - 1)[:, None].repeat(1, task.num_outputs)
        targets = targets[:, None].repeat(1, 3) if isinstance(task, Multilabel) else targets
    temperature = fit_temperature(task, task.activate(logits), targets.float())
    certain = at_temperature(task, task.activate(logits), temperature).max()
    assert 0.9 < certain < 0.99


def test_a_regression_cannot_be_calibrated() -> None:
    outputs, targets = answers_of(WEIGHT, 10)
    with pytest.raises(InputError, match="A regression has no probabilities"):
        fit_temperature(WEIGHT, outputs, targets)


# --- the temperature of a package -------------------------------------------------------------


def test_packages_made_before_there_were_temperatures_keep_their_digest() -> None:
    plain = small_package()
    assert "temperature" not in plain.manifest.model_dump(mode="json")["task"]
    assert "temperature" not in plain.manifest.model_dump_json()
    same = small_package(task=DIGITS.model_copy(update={"temperature": 1.0}))
    assert same.digest == plain.digest
    warm = small_package(task=DIGITS.model_copy(update={"temperature": 1.5}))
    assert warm.digest != plain.digest


def test_a_package_keeps_its_temperature_and_answers_by_it(tmp_path: object) -> None:
    packages: list[ModelPackage] = []
    for temperature in (1.0, 4.0):
        task = DIGITS.model_copy(update={"temperature": temperature})
        write_package(small_package(task=task), f"{tmp_path}/{temperature}")
        packages.append(read_package(f"{tmp_path}/{temperature}"))
    assert isinstance(packages[1].task, Multiclass)
    assert packages[1].task.temperature == 4.0
    answers = []
    for package in packages:
        predictor = Predictor(package, compile_mode="never", precision="float32")
        predictor.require_healthy()  # the golden images' outputs were made at the temperature
        prediction = predictor.predict([golden_png(1)])[0].prediction
        assert prediction is not None
        answers.append(prediction.probabilities)
    logits = np.log(answers[0])
    expected = np.exp(logits / 4) / np.exp(logits / 4).sum()
    np.testing.assert_allclose(answers[1], expected, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_is_a_number_above_zero(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Multiclass(labels=("a", "b"), temperature=temperature)


# --- thresholds -------------------------------------------------------------------------------


def binary(scores: list[float], truth: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    positive = torch.tensor(scores)
    return torch.stack([1 - positive, positive], dim=1), torch.tensor(truth).float()


@pytest.mark.parametrize(
    ("goal", "threshold"),
    [
        ("f1", 0.35),  # everything from 0.4 on: 3 of 4 right, none missed
        ("recall>=0.99", 0.35),
        ("recall >= 0.5", 0.75),
        ("precision>=0.9", 0.75),
        ("precision>=0.7", 0.35),
    ],
)
def test_a_threshold_lies_between_the_images_that_it_parts(goal: str, threshold: float) -> None:
    outputs, targets = binary([0.9, 0.8, 0.7, 0.4, 0.3, 0.1], [1, 1, 0, 1, 0, 0])
    task = choose_thresholds(DEFECTS, outputs, targets, goal=goal)
    assert isinstance(task, Binary)
    assert task.threshold == pytest.approx(threshold)
    assert task.labels == DEFECTS.labels


def test_neighbours_in_float32_are_parted_all_the_same() -> None:
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    outputs, targets = binary([float(high), float(low)], [1, 0])
    task = choose_thresholds(DEFECTS, outputs, targets)
    assert measure(task, outputs, targets)["accuracy"] == 1.0


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans())
def test_no_other_threshold_has_a_higher_f1(seed: int, num_images: int, ties: bool) -> None:
    outputs, targets = answers_of(DEFECTS, num_images, seed=seed, ties=ties)
    chosen = choose_thresholds(DEFECTS, outputs, targets)
    assert isinstance(chosen, Binary)
    if targets.sum() in (0, num_images):
        assert chosen == DEFECTS
        return
    best = measure(chosen, outputs, targets)["f1"]
    for score in outputs[:, 1].tolist():
        other = DEFECTS.model_copy(update={"threshold": score})
        assert measure(other, outputs, targets)["f1"] <= best + 1e-9


def test_each_label_gets_its_own_threshold_or_keeps_it() -> None:
    outputs = torch.tensor([[0.9, 0.2, 0.5], [0.6, 0.3, 0.5], [0.1, 0.1, 0.5]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    task = choose_thresholds(TAGS, outputs, targets)
    assert isinstance(task, Multilabel)
    assert task.thresholds == pytest.approx((0.75, 0.25, 0.7))
    answers = answered_labels(task, outputs)
    np.testing.assert_array_equal(answers, true_labels(task, targets))


@pytest.mark.parametrize(
    ("task", "goal", "sentence"),
    [
        (CLASSES, "f1", "A multiclass task has no thresholds"),
        (WEIGHT, "f1", "A regression task has no thresholds"),
        (DEFECTS, "f2", "'f2' is no goal"),
        (DEFECTS, "recall>=1.5", "'recall>=1.5' is no goal"),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(task: Task, goal: str, sentence: str) -> None:
    outputs, targets = answers_of(task, 50)
    with pytest.raises(InputError, match=sentence):
        choose_thresholds(task, outputs, targets, goal=goal)


def test_a_precision_that_no_threshold_gives_names_the_label_and_the_highest() -> None:
    outputs, targets = binary([0.9, 0.8, 0.2], [0, 1, 1])
    with pytest.raises(InputError, match=r"label 'defect' precision 0\.95, the highest is 0\.6667"):
        choose_thresholds(DEFECTS, outputs, targets, goal="precision>=0.95")
