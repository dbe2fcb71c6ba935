"""The tuning job on a real Ray: trials finish, stop or fail, and the best one is registered."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from eagleray.cli.console import Console
from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.registry.references import load_model
from eagleray.registry.registry import Registry
from eagleray.training.monitor import Monitor
from eagleray.training.prepare import reopen_job
from eagleray.training.runs import Run, find_run
from eagleray.training.spec import read_spec
from eagleray.training.tuning.budget import Budget
from eagleray.training.tuning.job import (
    TuneSummary,
    best_file,
    open_tune_job,
    reopen_tune_job,
    run_tune_job,
)
from eagleray.training.tuning.ray_tune import make_scheduler, make_searcher
from eagleray.training.tuning.record import read_tuning
from eagleray.training.tuning.search_space import SearchSpace
from eagleray.training.tuning.trials import Trial, TrialState, TrialTracker
from tests.support.mlflow_database import prepare_home
from tests.support.numerics import SAME_LOSS
from tests.support.training import ACCURACY, small_spec, write_stripes

STANDS_STILL, LEARNS, EXPLODES, CRAWLS = 1e-9, 5e-3, 1e30, 1e-8
NUM_EPOCHS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def space(folder: Path) -> SearchSpace:
    """A space whose default cannot learn, and one of whose values explodes."""
    data = write_stripes(folder / "stripes", 80)
    fixed = small_spec(data, epochs=NUM_EPOCHS, batch_size=16, validation_fraction=0.2, seed=13)
    return SearchSpace(
        fixed.model_dump(mode="json", exclude={"learning_rate"}),
        {"learning_rate": CategoricalDistribution((STANDS_STILL, LEARNS, EXPLODES, CRAWLS))},
    )


@pytest.fixture(scope="module")
def summary(cluster: Cluster, folder: Path, space: SearchSpace) -> TuneSummary:
    """One tuning for all tests: one trial after the other, so the seed alone says what is tried."""
    job = open_tune_job(space, Budget(6, 1, 1), Settings(home=folder / "home"), alias="candidate")
    return run_tune_job(job, cluster, Console(json_output=True))


def test_every_trial_ends_according_to_its_values(summary: TuneSummary) -> None:
    trials = summary.tuned.trials
    assert [trial.number for trial in trials] == list(range(1, 7))
    assert {trial.state for trial in trials} == {"finished", "stopped", "failed"}
    for trial in trials:
        assert (trial.state == "finished") == (len(trial.epochs) == NUM_EPOCHS)
        if trial.values["learning_rate"] == EXPLODES:
            assert trial.state == "failed"
            assert trial.reason is not None
            assert "is not a finite number" in trial.reason
        if trial.values["learning_rate"] == CRAWLS:
            assert trial.state == "stopped"


def test_the_default_finishes_and_the_best_trial_beats_it(summary: TuneSummary) -> None:
    tuned = summary.tuned
    assert tuned.default.values == {"learning_rate": STANDS_STILL}
    assert tuned.default.state == "finished"
    assert tuned.best.values == {"learning_rate": LEARNS}
    assert tuned.gain is not None
    assert tuned.gain > 0.1
    scores = [trial.score or 0.0 for trial in tuned.ranking]
    assert scores == sorted(scores, reverse=True)


def test_poor_trials_are_stopped_except_the_default() -> None:
    scheduler = make_scheduler(Monitor("score", "max"), Budget(3, 2, 1), 3)
    trials = {name: SimpleNamespace(trial_id=name) for name in ("default", "good", "poor")}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)

    def told(name: str, epoch: int, score: float) -> str:
        result = {"epoch": epoch, "validation_score": score}
        return str(scheduler.on_trial_result(None, trials[name], result))

    assert told("good", 1, 0.9) == "CONTINUE"
    assert told("default", 1, 0.1) == "CONTINUE"
    assert told("poor", 1, 0.2) == "STOP"
    assert told("default", 3, 0.1) == "STOP"  # the last epoch is the end for everybody


def test_a_trial_of_impossible_values_is_invalid_not_failed(cluster: Cluster) -> None:
    import ray

    def plan() -> None:
        raise InputError("lenet5 cannot take images of 1 x 1 pixels.")

    tracker = TrialTracker(ACCURACY, "nowhere")
    tracker.start("a", 1, {})
    with pytest.raises(InputError) as caught:
        ray.get(ray.remote(plan).remote())
    tracker.explain("a", caught.value)
    trial = tracker.trials["a"]
    assert trial.state == "invalid"
    assert trial.reason == "lenet5 cannot take images of 1 x 1 pixels."


def test_the_best_trial_s_weights_are_registered(summary: TuneSummary) -> None:
    settings = Settings(home=Path(summary.run.folder).parents[1])
    assert summary.version.reference == "stripes/1"
    package = load_model("stripes@candidate", settings).package
    assert package.manifest.metrics["test_accuracy"] > 0.6
    registry = Registry(settings)
    history = registry.client.get_metric_history(
        summary.version.run_id, "trial_validation_accuracy"
    )
    assert {metric.step for metric in history} == {trial.number for trial in summary.tuned.ranking}
    assert summary.run.read().version == "stripes/1"
    run = registry.client.get_run(summary.version.run_id)
    assert run.data.params["learning_rate"] == str(LEARNS)
    children = registry.client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    assert {child.data.tags["eagleray.state"] for child in children} == {
        trial.state for trial in summary.tuned.trials
    }
    assert len(children) == len(summary.tuned.trials)


def test_the_run_keeps_its_files_and_only_the_best_checkpoints(summary: TuneSummary) -> None:
    spec = read_spec(best_file(summary.run), {"workers": 2})
    assert spec.learning_rate == LEARNS
    assert spec.keep_checkpoints == 2  # a trial keeps one; the specification is the user's
    folder = Path(summary.run.folder)
    assert [path.name for path in (folder / "trials").iterdir()] == [summary.tuned.best.key]
    assert not (folder / "ray").exists()
    assert "best: trial" in (folder / "tune.html").read_text()
    assert {"data.html", "training.html", "evaluation.html", "space.yaml"} <= {
        path.name for path in folder.iterdir()
    }


def ended_trials(run: Run) -> int:
    _, trials = read_tuning(run, ACCURACY)
    return sum(trial.state != "running" for trial in trials)


def test_a_killed_tuning_resumes_with_its_trials_and_ends_as_an_undisturbed_one(
    cluster: Cluster, folder: Path, space: SearchSpace, summary: TuneSummary
) -> None:
    import ray  # not before the fixture has said how it is guarded

    home = folder / "killed"
    prepare_home(home)
    (folder / "space.yaml").write_text(space.to_yaml())
    words = ["--space", str(folder / "space.yaml"), "--num-trials", "6", "--max-concurrent", "1"]
    words += ["--grace-epochs", "1", "--cluster", ray.get_runtime_context().gcs_address]
    driver = subprocess.Popen(
        [sys.executable, "-m", "eagleray.jobs.tune", *words],
        env=os.environ | {"EAGLERAY_HOME": str(home)},
    )
    settings = Settings(home=home)
    deadline = time.monotonic() + 500
    while not (runs := [*home.glob("runs/*/tuning.json")]) or (
        ended_trials(run := find_run(settings, runs[0].parent.name)) < 3
    ):
        assert time.monotonic() < deadline, "it takes too long"
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    _, before = read_tuning(run, ACCURACY)
    with pytest.raises(InputError, match="is a tuning; resume it by `eagleray tune --resume"):
        reopen_job(run.name, settings)

    resumed = run_tune_job(reopen_tune_job(run.name, settings), cluster, Console(json_output=True))

    trials = resumed.tuned.trials
    assert [trial.number for trial in trials] == list(range(1, 7))
    kept = {trial.key for trial in before if trial.state != "running"}
    assert kept == {trial.key for trial in trials if trial.number <= len(kept)}
    for found, expected in zip(trials, summary.tuned.trials, strict=True):
        assert (found.values, found.state) == (expected.values, expected.state)
        assert found.scores == pytest.approx(expected.scores, rel=SAME_LOSS)
    assert resumed.tuned.best.number == summary.tuned.best.number
    assert [path.name for path in (home / "runs" / run.name / "trials").iterdir()] == [
        resumed.tuned.best.key
    ]
    assert resumed.version.reference == "stripes/1"
    with pytest.raises(InputError, match="is complete: it registered stripes/1"):
        reopen_tune_job(run.name, settings)


def suggest(searcher: Any, number: int) -> Trial:
    """Have a search suggest a trial, and tell it a score that depends on the values."""
    values = searcher.suggest(f"trial-{number}")
    score = values["dropout"] - abs(values["learning_rate"] - 1e-2)
    key, result = f"trial-{number}", {ACCURACY.metric: score, "training_iteration": 1}
    fails = number == 3
    searcher.on_trial_result(key, result)
    searcher.on_trial_complete(key, result, error=fails)
    state: TrialState = "failed" if fails else "finished"
    return Trial(number, key, values, ACCURACY, state, ({ACCURACY.metric: score},))


@pytest.mark.parametrize("num_ended", [1, 3, 9])
def test_a_resumed_search_suggests_what_an_undisturbed_one_would(num_ended: int) -> None:
    space = SearchSpace(
        small_spec("data", seed=4).model_dump(exclude={"learning_rate", "dropout"}),
        {
            "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
            "dropout": FloatDistribution(0.0, 0.5),
        },
    )
    budget = Budget(12, 1, None)
    searcher = make_searcher(space, ACCURACY, budget)
    undisturbed = [suggest(searcher, number) for number in range(1, 13)]
    assert len({trial.values["learning_rate"] for trial in undisturbed}) == 12
    # One trial had been started and not ended: it is suggested again.
    running = dataclasses.replace(undisturbed[num_ended], state="running", epochs=())
    again = make_searcher(space, ACCURACY, budget, [*undisturbed[:num_ended], running])
    resumed = [suggest(again, number) for number in range(num_ended + 1, 13)]
    assert resumed == undisturbed[num_ended:]


def test_a_resumed_scheduler_compares_with_the_trials_of_before() -> None:
    scores = {"default": [0.1, 0.1, 0.2], "good": [0.9, 0.9, 0.9], "fair": [0.5]}
    earlier = [
        Trial(number, key, {}, ACCURACY, "finished", tuple({ACCURACY.metric: s} for s in values))
        for number, (key, values) in enumerate(scores.items(), start=1)
    ]
    for known, action in (((), "CONTINUE"), (earlier, "STOP")):
        scheduler = make_scheduler(ACCURACY, Budget(9, 1, 1), 9, known)
        default = SimpleNamespace(trial_id="the first of an empty tuning")
        trial = SimpleNamespace(trial_id="new")
        for one in (trial,) if known else (default, trial):
            scheduler.on_trial_add(None, one)
        result = {"epoch": 1, ACCURACY.metric: 0.4}
        assert scheduler.on_trial_result(None, trial, result) == action
