"""The reasons why a run did not learn."""

from __future__ import annotations

import math

import pytest
import torch

from eagleray.evaluation.evaluate import Evaluation
from eagleray.tasks import Task
from eagleray.training.loop.checkpoint import BestEpoch
from eagleray.training.monitor import Monitor
from eagleray.training.registration.verdict import (
    ComparedMetric,
    comparison_monitor,
    reasons_not_learned,
)
from eagleray.training.result import TrainResult
from tests.support.evaluation import (
    CLASSES,
    DEFECTS,
    TAGS,
    TASKS,
    WEIGHT,
    answers_of,
    evaluation_of,
)

BY_NAME = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
ACCURACY = Monitor("accuracy", "max")
GUESSING = math.log(3)


def result_of(
    scores: list[float],
    *,
    losses: list[float] | None = None,
    train: list[float] | None = None,
    name: str = "accuracy",
) -> TrainResult:
    """Return a run with these validation scores; the best epoch is the last of the highest."""
    losses = losses or [1.0 - 0.1 * place for place in range(len(scores))]
    train = train or [1.0] * len(scores)
    epochs = tuple(
        {"train_loss": loss, "validation_loss": validation, f"validation_{name}": score}
        for score, validation, loss in zip(scores, losses, train, strict=True)
    )
    best = max(range(len(scores)), key=lambda place: (scores[place], place))
    return TrainResult(BestEpoch(best + 1, epochs[best]), epochs, (1.0,), False)


def good(task: Task) -> Evaluation:
    skill = 1.0 if task == WEIGHT else 3.0  # a regression is right at 1
    return evaluation_of(task, *answers_of(task, 200, skill=skill))


def weak() -> Evaluation:
    """Return an evaluation one image better than always predicting the most frequent label."""
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    outputs = torch.eye(3)[torch.zeros(100, dtype=torch.int64)]
    outputs[50] = torch.eye(3)[1]
    return evaluation_of(CLASSES, outputs, targets)


def reasons(
    task: Task = CLASSES,
    evaluation: Evaluation | None = None,
    result: TrainResult | None = None,
    *,
    monitor: Monitor | None = None,
    parent: ComparedMetric | None = None,
) -> tuple[str, ...]:
    monitor = monitor or Monitor(task.metric_names[0], "max")
    evaluation = evaluation or good(task)
    return reasons_not_learned(
        result or result_of([0.5, 0.9], name=monitor.name),
        evaluation,
        monitor,
        evaluation.targets,
        guessing=GUESSING,
        parent=parent,
    )


@BY_NAME
def test_a_model_that_predicts_from_its_images_has_learned(task: Task) -> None:
    assert reasons(task) == ()


@BY_NAME
def test_a_model_that_looks_at_no_image_has_not_learned(task: Task) -> None:
    _, targets = answers_of(task, 200)
    found = task.constant_prediction(targets)
    assert found is not None
    evaluation = evaluation_of(task, found[1].expand(200, -1), targets)
    (said,) = reasons(task, evaluation)
    assert said.startswith(f"On 200 test images its {task.metric_names[0]} is ")
    assert found[0] in said


@pytest.mark.parametrize(
    ("task", "targets", "expected", "outputs"),
    [
        (CLASSES, [1, 1, 1, 2], "most frequent label 'dog'", [0, 0.75, 0.25]),
        (DEFECTS, [0.0, 0.0, 0.0, 1.0], "always predicting 'fine'", [0.75, 0.25]),
        (DEFECTS, [0.0, 1.0], "always predicting 'defect'", [0.5, 0.5]),
        (TAGS, [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], "each label's frequency", [1, 0.5, 0]),
        (WEIGHT, [-1.0, 2.0], "the mean 60", [60]),
    ],
)
def test_the_constant_prediction_of_each_task(
    task: Task, targets: list[float], expected: str, outputs: list[float]
) -> None:
    found = task.constant_prediction(torch.tensor(targets))
    assert found is not None
    assert expected in found[0]
    assert found[1].tolist() == pytest.approx(outputs)


def test_a_majority_class_is_not_enough_where_a_balanced_metric_is_monitored() -> None:
    """Accuracy says that it learned nothing, and balanced recall that it did."""
    targets = torch.tensor([0] * 90 + [1] * 10)
    outputs = torch.zeros(100, 3)
    outputs[:80, 0] = outputs[80:, 1] = 1.0
    evaluation = evaluation_of(CLASSES, outputs, targets)
    recall = Monitor("recall_macro", "max")
    result = result_of([0.5, 0.9], name="recall_macro")
    assert reasons(CLASSES, evaluation, result, monitor=recall) == ()
    (said,) = reasons(CLASSES, evaluation)
    assert (
        "accuracy is 0.9000, and always predicting the most frequent label 'cat' gives 0.9000"
        in said
    )


def test_a_model_worse_than_its_parent_is_reported_with_both_values() -> None:
    worse = ComparedMetric("flowers/3", 0.8, 0.9, 72)
    (said,) = reasons(parent=worse)
    assert said == (
        "On the same 72 test images its accuracy is 0.8000, and that of its parent flowers/3 is "
        "0.9000."
    )
    assert reasons(parent=ComparedMetric("flowers/3", 0.9, 0.9, 72)) == ()
    loss = Monitor("log_loss", "min")
    result = result_of([0.9, 0.5], name="log_loss")
    assert reasons(result=result, monitor=loss, parent=worse) == ()


def test_a_loss_far_above_guessing_has_diverged() -> None:
    (said,) = reasons(result=result_of([0.3, 0.34], train=[4000.0, 5871.0]))
    assert said == (
        "The loss diverged: it is 5871 in the last epoch after 4000 in the first, and guessing has "
        "1.099; lower the learning rate."
    )
    assert reasons(result=result_of([0.3, 0.9], train=[3.2, 1.0])) == ()
    assert "diverged" in reasons(result=result_of([0.3, 0.9], train=[1.0, math.inf]))[0]


@pytest.mark.parametrize(
    ("scores", "losses", "learned"),
    [
        ([0.5, 0.4, 0.5], [1.0, 1.1, 1.2], False),
        ([0.5, 0.4, 0.6], [1.0, 1.1, 1.2], True),
        ([1.0, 1.0, 1.0], [0.2, 0.1, 0.1], True),  # perfect at once, and surer later
        ([0.5], [1.0], True),  # there is nothing to compare one epoch with
    ],
)
def test_a_weak_model_whose_first_epoch_is_the_best_did_not_learn(
    scores: list[float], losses: list[float], learned: bool
) -> None:
    found = reasons(evaluation=weak(), result=result_of(scores, losses=losses))
    assert (found == ()) == learned
    assert learned or "None of its 3 epochs is better than the first one" in found[0]


@BY_NAME
@pytest.mark.parametrize("num_epochs", [2, 20])
def test_a_model_clearly_above_the_constant_prediction_has_learned_in_its_first_epoch(
    task: Task, num_epochs: int
) -> None:
    monitor = Monitor(task.metric_names[0], "max")
    scores, losses = [0.9] + [0.8] * (num_epochs - 1), [1.0] + [1.1] * (num_epochs - 1)
    falling = result_of(scores, losses=losses, name=monitor.name)
    assert reasons(task, result=falling, monitor=monitor) == ()


def test_a_metric_that_is_not_resampled_leaves_the_decision_to_the_headline_metric() -> None:
    recall = Monitor("recall[dog]", "max")
    falling = result_of([0.9, 0.8], losses=[1.0, 1.1], name=recall.name)
    assert reasons(result=falling, monitor=recall) == ()


def test_versions_are_compared_by_the_monitored_metric_if_test_images_have_it() -> None:
    metrics = good(CLASSES).metrics
    assert comparison_monitor(Monitor("log_loss", "min"), CLASSES, metrics).name == "log_loss"
    assert comparison_monitor(Monitor("loss", "min"), CLASSES, metrics) == ACCURACY
    assert comparison_monitor(ACCURACY, WEIGHT, {"max_error": 1.0}) == Monitor("max_error", "min")
