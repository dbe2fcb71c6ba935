"""Targets, losses, predictions and stored form of each task, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from eagleray.core.errors import InputError
from eagleray.imaging.geometry import Frame
from eagleray.tasks import (
    Binary,
    Multiclass,
    Multilabel,
    Regression,
    StoredTask,
    Task,
    make_task,
)
from eagleray.tasks.classification.multilabel import split_labels
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.regression import parse_number

BINARY = Binary(labels=("no", "yes"), threshold=0.3)
MULTICLASS = Multiclass(labels=("cat", "dog", "owl"))
MULTILABEL = Multilabel(labels=("red", "round", "sweet"), thresholds=(0.2, 0.5, 0.9))
REGRESSION = Regression(mean=10.0, std=4.0)
FRAME = Frame(640, 480)


def outputs(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.asarray(values, np.float32)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# --- binary -----------------------------------------------------------------------------------


def test_binary_has_one_logit_for_its_second_label() -> None:
    assert BINARY.num_outputs == 1
    assert (BINARY.encode("no"), BINARY.encode("yes")) == (0.0, 1.0)
    activated = BINARY.activate(torch.tensor([[0.0], [logit(0.8)]]))
    torch.testing.assert_close(activated, torch.tensor([[0.5, 0.5], [0.2, 0.8]]))


def test_the_positive_label_is_the_second_or_the_one_that_is_named() -> None:
    task = make_task("binary", ("defect", "fine", "fine"))
    assert (task.positive, task.encode("fine")) == ("fine", 1.0)
    other = task.with_positive("defect")
    assert (other.positive, other.labels) == ("defect", ("fine", "defect"))
    assert (other.encode("defect"), other.encode("fine")) == (1.0, 0.0)
    assert other.with_positive("defect") == other
    with pytest.raises(InputError, match=r"'defekt' is not one of the data, which have 'defect'"):
        task.with_positive("defekt")
    classes = make_task("multiclass", ("a", "b"))
    assert (classes.positive, classes.has_positive) == (None, False)
    with pytest.raises(InputError, match="A multiclass model has no positive label"):
        classes.with_positive("a")


def test_binary_metrics_are_those_of_the_positive_label() -> None:
    task = make_task("binary", ("defect", "fine")).with_positive("defect")
    positive = torch.tensor([0.9, 0.2, 0.1, 0.1])
    outputs = torch.stack([1 - positive, positive], dim=1)
    metrics = task.measure(outputs, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert metrics["recall"] == metrics["recall[defect]"] == 0.5
    assert metrics["specificity"] == metrics["recall[fine]"] == 1.0
    facts = task.settings()
    assert (facts["positive label"], facts["threshold"]) == ("defect", "0.5")


def test_binary_loss_is_the_mean_cross_entropy() -> None:
    logits = torch.tensor([[logit(0.8)], [logit(0.4)]])
    expected = -(math.log(0.8) + math.log(1 - 0.4)) / 2
    assert BINARY.loss(logits, torch.tensor([1.0, 0.0])).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("positive", "label", "score"),
    [(0.9, "yes", 0.9), (0.31, "yes", 0.31), (0.3, "yes", 0.3), (0.29, "no", 0.71)],
)
def test_binary_takes_the_positive_from_its_threshold_on(
    positive: float, label: str, score: float
) -> None:
    prediction = BINARY.postprocess(outputs(1 - positive, positive), FRAME)
    assert (prediction.label, prediction.labels, prediction.value) == (label, (label,), None)
    assert prediction.score == pytest.approx(score)
    np.testing.assert_allclose(prediction.probabilities, [1 - positive, positive], rtol=1e-6)


# --- multiclass -------------------------------------------------------------------------------


def test_multiclass_encodes_the_place_and_activates_a_softmax() -> None:
    assert MULTICLASS.num_outputs == 3
    assert [MULTICLASS.encode(label) for label in MULTICLASS.labels] == [0, 1, 2]
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])
    torch.testing.assert_close(MULTICLASS.activate(logits), torch.tensor([[1, 2, 5]]) / 8)


def test_multiclass_loss_is_the_mean_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    expected = -(math.log(5 / 8) + math.log(1 / 3)) / 2
    assert MULTICLASS.loss(logits, torch.tensor([2, 0])).item() == pytest.approx(expected)


def test_multiclass_takes_the_likeliest() -> None:
    prediction = MULTICLASS.postprocess(outputs(0.2, 0.5, 0.3), FRAME)
    assert (prediction.label, prediction.labels, prediction.value) == ("dog", ("dog",), None)
    assert prediction.score == pytest.approx(0.5)


# --- multilabel -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("red", [1.0, 0.0, 0.0]),
        ("sweet|red", [1.0, 0.0, 1.0]),
        (" round | red |", [1.0, 1.0, 0.0]),
        ("", [0.0, 0.0, 0.0]),
        ("red|red", [1.0, 0.0, 0.0]),
    ],
)
def test_multilabel_encodes_every_label_named(text: str, target: list[float]) -> None:
    assert MULTILABEL.encode(text) == target


def test_multilabel_activates_each_logit_and_means_the_loss_over_labels() -> None:
    logits = torch.tensor([[logit(0.8), logit(0.4), logit(0.5)]])
    torch.testing.assert_close(MULTILABEL.activate(logits), torch.tensor([[0.8, 0.4, 0.5]]))
    expected = -(math.log(0.8) + math.log(1 - 0.4) + math.log(0.5)) / 3
    loss = MULTILABEL.loss(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "label", "score", "labels"),
    [
        # The likeliest of those that hold, though "sweet" has the largest probability of all.
        ((0.3, 0.6, 0.8), "round", 0.6, ("red", "round")),
        ((0.2, 0.5, 0.9), "sweet", 0.9, ("red", "round", "sweet")),
        ((0.1, 0.4, 0.8), None, 0.8, ()),
    ],
)
def test_multilabel_compares_each_label_with_its_own_threshold(
    values: tuple[float, ...], label: str | None, score: float, labels: tuple[str, ...]
) -> None:
    prediction = MULTILABEL.postprocess(outputs(*values), FRAME)
    assert (prediction.label, prediction.labels, prediction.value) == (label, labels, None)
    assert prediction.score == pytest.approx(score)


# --- regression -------------------------------------------------------------------------------


def test_regression_predicts_in_the_tables_unit() -> None:
    assert REGRESSION.num_outputs == 1
    assert REGRESSION.labels == ()
    assert REGRESSION.encode("12") == 0.5
    activated = REGRESSION.activate(torch.tensor([[0.5], [-1.0]]))
    torch.testing.assert_close(activated, torch.tensor([[12.0], [6.0]]))
    loss = REGRESSION.loss(torch.tensor([[0.5], [-1.0]]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx((0.25 + 4) / 2)


def test_a_regression_is_a_value_and_no_label() -> None:
    prediction = REGRESSION.postprocess(outputs(12.5), FRAME)
    assert prediction.value == 12.5
    assert (prediction.label, prediction.score, prediction.labels) == (None, None, ())
    assert prediction.probabilities.shape == (0,)
    assert prediction.top((), 5) == []


@given(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_a_regression_target_comes_back_as_it_was(value: float, mean: float, std: float) -> None:
    task = Regression(mean=mean, std=std)
    encoded = torch.tensor([[task.encode(repr(value))]], dtype=torch.float64)
    assert task.activate(encoded).item() == pytest.approx(value, rel=1e-9, abs=1e-9)


# --- two versions -----------------------------------------------------------------------------


def test_values_are_the_same_prediction_within_what_a_precision_may_change() -> None:
    first, near, far = (REGRESSION.postprocess(outputs(value), FRAME) for value in (9, 9.1, 9.2))
    assert REGRESSION.same_answer(first, near)
    assert not REGRESSION.same_answer(first, far)  # 0.03 of a spread of 4 is the limit
    assert REGRESSION.describe(far) == "9.2"


def test_another_task_never_gives_the_same_prediction_as_a_regression() -> None:
    value = REGRESSION.postprocess(outputs(9), FRAME)
    cat = MULTICLASS.postprocess(outputs(0.8, 0.1, 0.1), FRAME)
    assert not REGRESSION.same_answer(value, cat)
    assert not MULTICLASS.same_answer(cat, value)
    assert (REGRESSION.describe(cat), MULTICLASS.describe(value)) == ("cat", None)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [((0.3, 0.6, 0.8), (0.4, 0.9, 0.1), True), ((0.3, 0.6, 0.8), (0.3, 0.6, 0.9), False)],
)
def test_labels_are_the_same_prediction_at_any_scores(
    first: tuple[float, ...], second: tuple[float, ...], same: bool
) -> None:
    one, other = (MULTILABEL.postprocess(outputs(*values), FRAME) for values in (first, second))
    assert MULTILABEL.same_answer(one, other) is same


# --- labels that are none ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        (BINARY, "maybe", "'maybe' is not a label of this model."),
        (MULTICLASS, "Cat", "'Cat' is not a label of this model."),
        (MULTICLASS, "", "'' is not a label of this model."),
        (MULTILABEL, "red|blue", "'blue' is not a label of this model."),
        (REGRESSION, "tall", "'tall' is not a number, which a regression needs as its label."),
        (REGRESSION, "nan", "'nan' is not a number, which a regression needs as its label."),
        (REGRESSION, "-inf", "'-inf' is not a number, which a regression needs as its label."),
        (REGRESSION, "", "'' is not a number, which a regression needs as its label."),
    ],
)
def test_a_label_that_a_task_does_not_know_is_one_sentence(
    task: Task, text: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        task.encode(text)
    assert str(caught.value) == expected


@pytest.mark.parametrize(("text", "value"), [(" 7 ", 7.0), ("1e3", 1000.0), ("-0.5", -0.5)])
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert parse_number(text) == value


def test_labels_are_split_without_blanks() -> None:
    assert split_labels(" a b | c||d ") == ["a b", "c", "d"]


# --- making a task from a table ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("binary", ["yes", "no", "no"], Binary(labels=("no", "yes"))),
        ("multiclass", ["b", "a", "c", "a"], Multiclass(labels=("a", "b", "c"))),
        ("multiclass", ["10", "9"], Multiclass(labels=("10", "9"))),
        (
            "multilabel",
            ["b|a", "", " c | a"],
            Multilabel(labels=("a", "b", "c"), thresholds=(0.5, 0.5, 0.5)),
        ),
        ("regression", ["1", "3"], Regression(mean=2.0, std=1.0)),
    ],
)
def test_a_task_fits_its_table(name: str, texts: list[str], expected: Task) -> None:
    assert make_task(name, texts) == expected


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("binary", ["a", "b", "c"], "needs exactly 2 labels, the data have 3; use --task multicl"),
        ("binary", ["a", "a"], "needs exactly 2 labels, the data have 1"),
        ("multiclass", ["a", "a"], "one class only ('a'); a classifier needs two or more"),
        ("multilabel", ["", " | "], "No row of the table names a label"),
        ("regression", ["1", "two"], "'two' is not a number"),
        ("regression", ["1", "inf"], "'inf' is not a number"),
        ("regression", ["5", "5", "5.0"], "Every label is the same number"),
        pytest.param(
            "regression",
            ["0.1", "0.1", "0.1"],
            "Every label is the same number",
        ),
        pytest.param(
            "multiclass",
            [],
            "label",
        ),
        pytest.param(
            "regression",
            ["1e308", "-1e308"],
            "spread",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_table_that_does_not_fit_its_task_is_one_sentence(
    name: str, texts: list[str], expected: str
) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        make_task(name, texts)
    assert expected in str(caught.value)


# --- as a package stores them -----------------------------------------------------------------


class Holder(BaseModel):
    """Stores a task as a package's manifest does."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task: StoredTask


@pytest.mark.parametrize("task", [BINARY, MULTICLASS, MULTILABEL, REGRESSION])
def test_a_task_comes_back_from_json(task: Task) -> None:
    again = Holder.model_validate_json(Holder(task=task).model_dump_json()).task
    assert again == task
    assert type(again) is type(task)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('{"name": "captioning"}', "No task is named 'captioning'"),
        ('{"labels": ["a", "b"]}', "it has no name"),
        ('{"name": "multiclass", "labels": ["a", "a"]}', "labels must be unique"),
        ('{"name": "multiclass", "labels": ["a"]}', "at least 2 items"),
        ('{"name": "multiclass", "labels": ["a", 1]}', "valid string"),
        ('{"name": "multiclass", "labels": ["a", "b"], "top": 5}', "Extra inputs"),
        ('{"name": "binary", "labels": ["a", "b", "c"]}', "at most 2 items"),
        ('{"name": "binary", "labels": ["a", "a"]}', "labels must be unique"),
        ('{"name": "binary", "labels": ["a", "b"], "threshold": 1.5}', "less than or equal to 1"),
        ('{"name": "multilabel", "labels": ["a"], "thresholds": []}', "has 0 values for 1 labels"),
        ('{"name": "multilabel", "labels": ["a|b"], "thresholds": [0.5]}', "must not contain '|'"),
        ('{"name": "regression", "std": 0.0}', "greater than 0"),
        *(
            pytest.param(
                f'{{"name": "regression", {field}}}',
                "finite",
            )
            for field in ('"std": Infinity', '"mean": NaN')
        ),
    ],
)
def test_a_stored_task_that_cannot_be_names_its_fault(stored: str, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate_json(f'{{"task": {stored}}}')
    assert expected in str(caught.value)


# --- predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ((0.2, 0.5, 0.3), 2, ["dog", "owl"]),
        ((0.2, 0.5, 0.3), 9, ["dog", "owl", "cat"]),
        ((0.25, 0.5, 0.25), 3, ["dog", "cat", "owl"]),  # equal ones stay in the labels' order
        ((0.2, 0.5, 0.3), 0, []),
    ],
)
def test_top_lists_the_likeliest_first(
    values: tuple[float, ...], count: int, expected: list[str]
) -> None:
    prediction = Prediction("dog", 0.5, ("dog",), None, outputs(*values))
    top = prediction.top(MULTICLASS.labels, count)
    assert [label for label, _ in top] == expected
    by_label = dict(zip(MULTICLASS.labels, values, strict=True))
    assert [score for _, score in top] == pytest.approx([by_label[label] for label in expected])
