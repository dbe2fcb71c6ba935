"""The metric that a run monitors: how it is chosen, and which of its values is the best."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.cli.options import read_spec
from eagleray.core.errors import UnknownNameError, UserError
from eagleray.tasks import Binary, Multiclass, Multilabel, Regression, Task
from eagleray.training.monitor import Monitor, mode_of, monitor_of, require_monitor
from eagleray.training.spec import TrainSpec
from tests.support.training import small_spec

KINDS = Multiclass(labels=("cat", "dog"))
BOTH = Binary(labels=("bad", "good"))
TAGS = Multilabel(labels=("x", "y"), thresholds=(0.5, 0.5))
WEIGHT = Regression()


@pytest.mark.parametrize(
    ("task", "changes", "name", "mode"),
    [
        (KINDS, {}, "accuracy", "max"),
        (KINDS, {"class_weights": "balanced"}, "recall_macro", "max"),
        (KINDS, {"class_weights": "dog=2"}, "recall_macro", "max"),
        (KINDS, {"sampler": "balanced"}, "recall_macro", "max"),
        (KINDS, {"thresholds": "f1"}, "accuracy", "max"),  # it has none
        (BOTH, {}, "accuracy", "max"),
        (BOTH, {"sampler": "balanced"}, "balanced_accuracy", "max"),
        (BOTH, {"thresholds": "f1"}, "average_precision", "max"),
        (TAGS, {}, "f1_macro", "max"),
        (TAGS, {"thresholds": "f1"}, "average_precision_macro", "max"),
        (WEIGHT, {}, "r2", "max"),
        (KINDS, {"monitor": "loss"}, "loss", "min"),
        (KINDS, {"monitor": "validation_log_loss"}, "log_loss", "min"),
        (KINDS, {"monitor": "recall[dog]", "class_weights": "balanced"}, "recall[dog]", "max"),
        (KINDS, {"monitor": "ece", "mode": "max"}, "ece", "max"),
    ],
)
def test_the_metric_follows_the_specification_and_the_task(
    task: Task, changes: dict[str, Any], name: str, mode: str
) -> None:
    monitor = monitor_of(small_spec("d", task=task.name, **changes), task)
    assert (monitor.name, monitor.mode) == (name, mode)
    assert monitor.metric == f"validation_{name}"


@pytest.mark.parametrize("task", [KINDS, BOTH, TAGS, WEIGHT], ids=lambda task: task.name)
def test_losses_and_errors_are_low_and_all_else_is_high(task: Task) -> None:
    low = {name for name in ("loss", *task.measured_names()) if mode_of(name) == "min"}
    words = ("loss", "error", "ece")
    assert low == {
        name
        for name in ("loss", *task.measured_names())
        if any(word in name.split("_") for word in words)
    }
    assert "loss" in low
    assert low < {"loss", *task.measured_names()}


def test_a_name_with_a_label_keeps_the_label() -> None:
    assert Monitor("log_loss", "min").best_title == "lowest validation log loss"
    assert Monitor("recall[my_dog]", "max").best_title == "highest validation recall[my_dog]"


def test_the_best_value_is_a_number() -> None:
    high, low, nan = Monitor("accuracy", "max"), Monitor("loss", "min"), math.nan
    assert high.best([nan, 0.4, 0.6, nan]) == 0.6
    assert low.best([nan, 0.4, 0.6]) == 0.4
    assert low.best([nan]) is None
    assert high.is_better(0.5, 0.4)
    assert not high.is_better(0.5, 0.5)
    assert low.is_better(0.4, 0.5)
    assert high.is_better(0.1, nan)
    assert not high.is_better(nan, 0.1)
    assert not high.is_better(nan, nan)


def test_a_value_that_only_equals_the_best_is_no_improvement() -> None:
    high, low = Monitor("accuracy", "max"), Monitor("loss", "min")
    assert high.epochs_without_improvement([0.5]) == 0
    assert high.epochs_without_improvement([0.5, 0.8, 0.8, 0.7]) == 2
    assert low.epochs_without_improvement([0.5, 0.8, 0.4]) == 0
    assert high.epochs_without_improvement([math.nan, 0.2, math.nan]) == 1


def check(task: Task, texts: list[str], **changes: Any) -> None:
    targets = torch.tensor(
        [task.encode(text) for text in texts], dtype=getattr(torch, task.target_dtype)
    )
    require_monitor(small_spec("d", task=task.name, **changes), task, targets)


def test_a_metric_that_the_validation_split_yields_is_accepted() -> None:
    for name in ("loss", "log_loss", "recall[dog]", "average_precision_macro", "accuracy"):
        check(KINDS, ["cat", "dog"], monitor=name)
    check(WEIGHT, ["3"])  # of one image there is no r2, and training is as well as it can be


@pytest.mark.parametrize(
    ("task", "texts", "changes", "sentence"),
    [
        (
            KINDS,
            ["cat", "dog"],
            {"monitor": "acuracy"},
            "No metric is named 'acuracy'. Nearest: accuracy",
        ),
        (KINDS, ["cat", "dog"], {"monitor": "recall[cow]"}, "Nearest: recall[dog], "),
        (KINDS, ["cat", "cat"], {"monitor": "recall[dog]"}, "is not defined for the validation"),
        (
            TAGS,
            ["", ""],
            {"thresholds": "f1"},
            "'average_precision_macro' is not defined for the validation split, which lacks a "
            "label or has it everywhere; take another metric, such as loss or accuracy.",
        ),
        (WEIGHT, ["1", "2"], {"monitor": "accuracy"}, "There are: loss, r2, mean_absolute_error"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_available_ones(
    task: Task, texts: list[str], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=r"^monitor: [^\n]+\.$") as caught:
        check(task, texts, **changes)
    assert sentence in str(caught.value)


def test_metrics_of_single_labels_are_not_listed() -> None:
    with pytest.raises(UnknownNameError, match="There are: loss, accuracy, ") as caught:
        check(KINDS, ["cat", "dog"], monitor="xyz")
    assert "[" not in str(caught.value)


def test_a_wrong_metric_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "flowers.yaml"
    file.write_text("data: d\nname: n\nmonitor: acuracy\n")
    targets = torch.tensor([0, 1])
    for options, place in (({}, f"{file}: monitor"), ({"monitor": "acuracy"}, "--monitor")):
        spec = read_spec(TrainSpec, options, file=str(file))
        with pytest.raises(UnknownNameError, match=f"^{re.escape(place)}: No metric is named"):
            require_monitor(spec, KINDS, targets)
