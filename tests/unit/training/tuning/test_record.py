"""The record of a tuning: written at every start and end of a trial, and read to resume it."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.training.prepare import reopen_job
from eagleray.training.runs import Run, RunRecord, create_run
from eagleray.training.tuning.budget import Budget
from eagleray.training.tuning.job import reopen_tune_job
from eagleray.training.tuning.record import read_tuning, write_tuning
from eagleray.training.tuning.trials import TrialTracker
from tests.support.training import ACCURACY, epoch_metrics, small_spec

BUDGET = Budget(12, None, 3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = create_run(Settings(home=tmp_path), small_spec("data"))
    run.write(RunRecord(run=run.name, data_digest="0" * 64, alias="candidate"))
    return run


def test_trials_are_read_back_as_they_were_written(run: Run, tmp_path: Path) -> None:
    save = functools.partial(write_tuning, run, BUDGET)
    tracker = TrialTracker(ACCURACY, str(tmp_path), save=save)
    values = {"learning_rate": 1e-3, "horizontal_flip": True, "batch_size": 32, "loss": "auto"}
    for number, key in enumerate("abc", start=1):
        tracker.start(key, number, values)
    tracker.add_epoch("b", epoch_metrics(0.5), last=False)
    tracker.add_epoch("b", {**epoch_metrics(math.nan), "train_loss": math.inf}, last=True)
    tracker.end("b")
    tracker.end("a", failed=True)
    budget, trials = read_tuning(run, ACCURACY)
    assert budget == BUDGET
    assert [(trial.number, trial.state) for trial in trials] == [
        (1, "failed"),
        (2, "finished"),
        (3, "running"),
    ]
    assert trials[0].reason == "the reason was lost when the tuning was interrupted"
    assert [type(value) for value in trials[1].values.values()] == [float, bool, int, str]
    assert trials[1].values == values
    assert math.isnan(trials[1].scores[1])
    assert trials[1].score == 0.5
    assert trials[1].epochs[1]["train_loss"] == math.inf


def test_a_damaged_record_is_one_sentence(run: Run) -> None:
    write_tuning(run, BUDGET, ())
    content = json.loads(Path(run.tuning_file).read_text())
    damages: list[object] = [
        {**content, "trials": [{"number": 1}]},
        {**content, "num_trials": 0},
        [],
    ]
    for damage in damages:
        Path(run.tuning_file).write_text(json.dumps(damage))
        with pytest.raises(InputError, match=r"tuning.json is damaged; begin a new tuning\.$"):
            read_tuning(run, ACCURACY)


def test_a_run_is_resumed_by_the_command_that_began_it(run: Run, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(InputError, match=r"is a training; resume it by `eagleray train --resume"):
        reopen_tune_job(run.name, settings)
    write_tuning(run, BUDGET, ())
    with pytest.raises(InputError, match=r"is a tuning; resume it by `eagleray tune --resume"):
        reopen_job(run.name, settings)
