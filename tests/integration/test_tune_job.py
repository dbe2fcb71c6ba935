"""The tuning job on a real Ray: trials finish, stop or fail, and the best one is registered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.distributions import CategoricalDistribution

from eagleray.cli.console import Console
from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.registry.references import load_model
from eagleray.registry.registry import Registry
from eagleray.training.budget import Budget
from eagleray.training.monitor import Monitor
from eagleray.training.ray_tune import make_scheduler
from eagleray.training.search_space import SearchSpace
from eagleray.training.spec import read_spec
from eagleray.training.trials import TrialTracker
from eagleray.training.tune_job import TuneSummary, best_file, open_tune_job, run_tune_job
from tests.support.training import ACCURACY, small_spec, write_stripes

STANDS_STILL, LEARNS, EXPLODES, CRAWLS = 1e-9, 5e-3, 1e30, 1e-8
NUM_EPOCHS = 6


@pytest.fixture(scope="module")
def summary(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> TuneSummary:
    """One tuning for all tests: its default cannot learn, and one of its values explodes.

    One trial after the other, so that the seed alone says what is tried.
    """
    folder = tmp_path_factory.mktemp("tuning")
    data = write_stripes(folder / "stripes", 80)
    fixed = small_spec(data, epochs=NUM_EPOCHS, batch_size=16, validation_fraction=0.2, seed=1)
    space = SearchSpace(
        fixed.model_dump(exclude={"learning_rate"}),
        {"learning_rate": CategoricalDistribution((STANDS_STILL, LEARNS, EXPLODES, CRAWLS))},
    )
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
