"""The result of a cross-validation, as scripts read it."""

from __future__ import annotations

import math

import pytest

from eagleray.core.errors import Reason
from eagleray.data.inspection import Fault
from eagleray.training.cross_validation import CrossValidation, Fold
from eagleray.training.loop.checkpoint import BestEpoch
from eagleray.training.result import TrainResult
from eagleray.training.runs import Run
from tests.support.training import ACCURACY, epoch_metrics


def fold(number: int, accuracy: float, **metrics: float) -> Fold:
    name = f"pets-1-fold-{number}"
    epochs = (epoch_metrics(0.5), epoch_metrics(0.7))
    result = TrainResult(BestEpoch(2, epochs[1]), epochs, (1.0,), False)
    run = Run(name, f"/runs/{name}")
    return Fold(run, f"id-{number}", {"accuracy": accuracy, **metrics}, result, (), ())


def test_the_json_output_names_run_folder_monitor_warnings_and_notes() -> None:
    fault = Fault("/pets/1.png", Reason.TRUNCATED, "the file ends early")
    found = CrossValidation(
        run=Run("pets-1", "/runs/pets-1"),
        mlflow_run="id",
        monitor=ACCURACY,
        folds=(fold(1, 0.8, roc_auc=0.9), fold(2, 0.6)),
        skipped=(fault,),
        warnings=("Few images.",),
        notes=("The labels are those of the folders.",),
    )
    said = found.as_json()
    assert said["folds"] == [{"accuracy": 0.8, "roc_auc": 0.9}, {"accuracy": 0.6}]
    assert said["mean"] == {"accuracy": pytest.approx(0.7)}  # one fold has no roc_auc
    assert said["standard_deviation"] == {"accuracy": pytest.approx(math.sqrt(0.02))}
    assert (said["run"], said["folder"], said["mlflow_run"]) == ("pets-1", "/runs/pets-1", "id")
    assert (said["monitor"], said["mode"]) == ("validation_accuracy", "max")
    assert said["warnings"] == ["Few images."]
    assert said["notes"] == ["The labels are those of the folders."]
    assert [one["uri"] for one in said["skipped"]] == ["/pets/1.png"]
    first = said["fold_runs"][0]
    assert (first["run"], first["folder"]) == ("pets-1-fold-1", "/runs/pets-1-fold-1")
    assert (first["mlflow_run"], first["best_epoch"]) == ("id-1", 2)
