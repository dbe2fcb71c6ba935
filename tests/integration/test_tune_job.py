"""The tune job on a real Ray: trials are tried, stopped, refused and ranked; the best is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.cli.console import Console
from eagleray.cluster import Cluster
from eagleray.models.registry import Registry
from eagleray.models.sources import load_model
from eagleray.settings import Settings
from eagleray.training.search import Choice, SearchSpace
from eagleray.training.spec import read_spec
from eagleray.training.tuning import Budget
from jobs.tune import TuneSummary, best_file, build, run
from tests.unit.training_kit import small_spec, write_stripes

STANDS_STILL, LEARNS, EXPLODES = 1e-9, 5e-3, 1e30


@pytest.fixture(scope="module")
def summary(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> TuneSummary:
    """One tuning for all tests: its default cannot learn, and one of its values explodes."""
    folder = tmp_path_factory.mktemp("tuning")
    fixed = small_spec(write_stripes(folder / "stripes", 40), epochs=4, optimizer="sgd")
    space = SearchSpace(
        {**fixed.model_dump(exclude={"learning_rate", "image_size"}), "seed": 1},
        {
            "learning_rate": Choice((STANDS_STILL, LEARNS, EXPLODES)),
            "image_size": Choice((32, 1)),
        },
    )
    job = build(space, Budget(8, 2, 1), Settings(home=folder / "home"), alias="candidate")
    return run(job, cluster, Console(json_output=True))


def test_every_trial_ends_as_its_values_make_it(summary: TuneSummary) -> None:
    trials = summary.tuned.trials
    assert [trial.number for trial in trials] == list(range(1, 9))
    for trial in trials:
        rate, size = trial.values["learning_rate"], trial.values["image_size"]
        if size == 1:
            assert trial.state == "refused"
            assert trial.reason is not None
            assert "cannot take images of 1 x 1" in trial.reason
        elif rate == EXPLODES:
            assert trial.state == "failed"
            assert trial.reason is not None
            assert "is not a finite number" in trial.reason
        else:
            assert trial.state in ("finished", "stopped")
            assert (trial.state == "finished") == (len(trial.epochs) == 4)
    assert {trial.state for trial in trials} == {"finished", "stopped", "refused", "failed"}


def test_the_default_runs_to_its_end_and_the_best_beats_it(summary: TuneSummary) -> None:
    tuned = summary.tuned
    assert tuned.default.values == {"learning_rate": STANDS_STILL, "image_size": 32}
    assert tuned.default.state == "finished"
    assert tuned.best.values["learning_rate"] == LEARNS
    assert tuned.gain is not None
    assert tuned.gain > 0.2
    scores = [trial.score for trial in tuned.ranking]
    assert scores == sorted(scores, reverse=True, key=lambda score: score or 0.0)


def test_the_best_trial_s_weights_are_registered(summary: TuneSummary) -> None:
    settings = Settings(home=Path(summary.run.folder).parents[1])
    assert summary.version.reference == "stripes/1"
    package = load_model("stripes@candidate", settings).package
    assert package.manifest.metrics["test_accuracy"] >= 0.9
    registry = Registry(settings)
    history = registry.client.get_metric_history(
        summary.version.run_id, "trial_validation_accuracy"
    )
    assert {metric.step for metric in history} == {trial.number for trial in summary.tuned.ranking}
    assert summary.run.read().version == "stripes/1"


def test_the_run_keeps_what_repeats_it_and_nothing_of_the_poor(summary: TuneSummary) -> None:
    spec = read_spec(best_file(summary.run), {"workers": 2})
    assert spec.learning_rate == LEARNS
    assert spec.keep_checkpoints == 2  # a trial keeps one; the specification is the user's
    folder = Path(summary.run.folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [summary.tuned.best.key]
    assert not (folder / "ray").exists()
    assert "best: trial" in (folder / "tune.html").read_text()
    assert {"data.html", "training.html", "evaluation.html", "space.yaml"} <= {
        path.name for path in folder.iterdir()
    }
