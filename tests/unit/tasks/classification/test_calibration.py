"""Temperatures and thresholds: found again where they are known, kept with the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from eagleray.inference.predictor import Predictor
from eagleray.models.package import ModelPackage, read_package, write_package
from eagleray.tasks import Binary, Multiclass, Multilabel, Task
from eagleray.tasks.classification.label_task import Classification
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

CLASSIFIERS: tuple[Classification, ...] = (CLASSES, DEFECTS, TAGS)
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
def test_a_known_temperature_is_found_again(task: Classification, temperature: float) -> None:
    logits, targets = truthful(task, 6000)
    outputs = task.activate(logits * temperature)
    assert task.fitted_temperature(outputs, targets) == pytest.approx(temperature, rel=0.08)


@BY_NAME
def test_the_temperature_improves_the_calibration_and_not_the_order(task: Classification) -> None:
    logits, targets = truthful(task, 4000)
    outputs = task.activate(logits * 3)
    temperature = task.fitted_temperature(outputs, targets)
    mended = task.at_temperature(outputs, temperature)
    before, after = (task.reliability(one, targets).error for one in (outputs, mended))
    assert after < 0.4 * before
    assert after < 0.02
    if isinstance(task, Multiclass):
        np.testing.assert_array_equal(task.predicted(outputs), task.predicted(mended))
    else:
        areas = [task.measure(one, targets) for one in (outputs, mended)]
        name = "roc_auc" if isinstance(task, Binary) else "roc_auc_macro"
        assert areas[0][name] == pytest.approx(areas[1][name], abs=1e-4)


@BY_NAME
def test_no_temperature_near_it_makes_the_targets_likelier(task: Classification) -> None:
    logits, targets = logits_of(task, 3000, skill=0.7)
    best = task.fitted_temperature(task.activate(logits), targets)
    losses = [task.loss(logits / (best * factor), targets) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] < min(losses[0], losses[2])


@BY_NAME
@settings(max_examples=20)
@given(temperature=st.floats(0.3, 5.0), other=st.floats(0.3, 5.0), seed=st.integers(0, 99))
def test_outputs_at_another_temperature_are_what_the_task_would_predict(
    task: Classification, temperature: float, other: float, seed: int
) -> None:
    logits, _ = logits_of(task, 20, seed=seed)
    here = task.model_copy(update={"temperature": temperature})
    there = task.model_copy(update={"temperature": other})
    moved = here.at_temperature(here.activate(logits), other)
    torch.testing.assert_close(moved, there.activate(logits), atol=2e-4, rtol=1e-2)


def test_the_temperature_is_the_tasks_new_one_and_not_a_factor() -> None:
    logits, targets = truthful(CLASSES, 3000)
    warm = CLASSES.model_copy(update={"temperature": 2.0})
    fitted = warm.fitted_temperature(warm.activate(logits), targets)
    assert fitted == pytest.approx(CLASSES.fitted_temperature(CLASSES.activate(logits), targets))


@BY_NAME
def test_a_few_images_without_a_mistake_prove_no_certainty(task: Classification) -> None:
    targets = torch.tensor([0, 1, 0, 1] * 5)
    if isinstance(task, Multiclass):
        logits = functional.one_hot(targets, 3).float() * 2
    else:
        logits = (2.0 * targets - 1)[:, None].repeat(1, task.num_outputs)
        targets = targets[:, None].repeat(1, 3) if isinstance(task, Multilabel) else targets
    temperature = task.fitted_temperature(task.activate(logits), targets.float())
    certain = task.at_temperature(task.activate(logits), temperature).max()
    assert 0.9 < certain < 0.99


def test_a_regression_has_nothing_to_fit() -> None:
    outputs, targets = answers_of(WEIGHT, 10)
    assert WEIGHT.fitted == frozenset()
    assert WEIGHT.fit(outputs, targets, {"temperature", "thresholds"}) is WEIGHT
    assert WEIGHT.facts(outputs, targets) == {}


@BY_NAME
def test_a_task_is_fitted_to_what_is_wanted_the_temperature_first(task: Classification) -> None:
    logits, targets = truthful(task, 500)
    outputs = task.activate(logits * 3)
    assert task.fit(outputs, targets, set()) == task
    warm = task.fit(outputs, targets, {"temperature"})
    temperature = task.fitted_temperature(outputs, targets)
    assert warm == task.model_copy(update={"temperature": temperature})
    both = task.fit(outputs, targets, {"temperature", "thresholds"})
    if "thresholds" in task.fitted:
        moved = task.at_temperature(outputs, temperature)
        assert both == warm.choose_thresholds(moved, targets)
    else:
        assert both == warm


@BY_NAME
def test_a_temperature_at_a_limit_of_the_fit_is_a_warning(task: Classification) -> None:
    # Confident probabilities that have nothing to do with the targets.
    generator = torch.Generator().manual_seed(0)
    logits = 50 * torch.randn(400, task.num_outputs, generator=generator)
    targets = truthful(task, 400, seed=3)[1]
    outputs = task.activate(logits)
    assert task.fit_warnings == ()
    (warning,) = task.fit(outputs, targets, {"temperature"}).fit_warnings
    assert warning.startswith("The temperature is 20, the highest that is fitted")
    (warning,) = task.model_copy(update={"temperature": 0.05}).fit_warnings
    assert "the lowest that is fitted" in warning
    assert task.model_copy(update={"temperature": 19.9}).fit_warnings == ()


# --- the temperature of a package -------------------------------------------------------------


def test_packages_made_before_there_were_temperatures_keep_their_digest() -> None:
    plain = small_package()
    assert "temperature" not in plain.manifest.model_dump(mode="json")["task"]
    assert "temperature" not in plain.manifest.model_dump_json()
    same = small_package(task=DIGITS.model_copy(update={"temperature": 1.0}))
    assert same.digest == plain.digest
    warm = small_package(task=DIGITS.model_copy(update={"temperature": 1.5}))
    assert warm.digest != plain.digest


def test_a_package_keeps_its_temperature_and_predicts_by_it(tmp_path: object) -> None:
    packages: list[ModelPackage] = []
    for temperature in (1.0, 4.0):
        task = DIGITS.model_copy(update={"temperature": temperature})
        write_package(small_package(task=task), f"{tmp_path}/{temperature}")
        packages.append(read_package(f"{tmp_path}/{temperature}"))
    assert isinstance(packages[1].task, Multiclass)
    assert packages[1].task.temperature == 4.0
    answers = []
    for package in packages:
        predictor = Predictor(package, engine="eager", precision="float32")
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
