"""The tracker of trials and their ranking; no Ray."""

from __future__ import annotations

from pathlib import Path

from eagleray.core.errors import InputError, JobFailedError
from eagleray.training.monitor import Monitor
from eagleray.training.tuning.trials import Trial, rank
from tests.support.training import ACCURACY, epoch_metrics, tracker_with


def test_trials_are_ranked_by_their_best_epoch_and_only_the_best_keeps_its_weights(
    tmp_path: Path,
) -> None:
    nan = float("nan")
    tracker = tracker_with(
        tmp_path, ("a", [0.3, 0.7, 0.6]), ("b", [0.2]), ("c", [nan, 0.7, nan]), ("d", [nan])
    )
    assert [trial.key for trial in rank(tracker.trials, ACCURACY)] == ["a", "c", "b"]
    states = {key: trial.state for key, trial in tracker.trials.items()}
    assert states == {"a": "finished", "b": "stopped", "c": "finished", "d": "stopped"}
    assert [folder.name for folder in tmp_path.iterdir()] == ["a"]


def test_trials_are_ranked_by_the_lowest_value_of_a_loss(tmp_path: Path) -> None:
    loss, nan = Monitor("loss", "min"), float("nan")
    runs = [("a", [0.3, 0.7, 0.6]), ("b", [0.2]), ("c", [nan, 0.4, nan])]
    tracker = tracker_with(tmp_path, *runs, monitor=loss)
    assert [trial.key for trial in rank(tracker.trials, loss)] == ["b", "a", "c"]
    assert tracker.trials["c"].score == 0.4
    assert [folder.name for folder in tmp_path.iterdir()] == ["b"]


def test_a_trial_that_fails_has_its_reason_and_no_rank(tmp_path: Path) -> None:
    tracker = tracker_with(tmp_path, ("a", [0.3, 0.3, 0.3]))
    for key, error, state, reason in (
        ("b", JobFailedError("The loss is no number."), "failed", "The loss is no number."),
        ("c", InputError("Too small."), "invalid", "Too small."),
        ("d", MemoryError("no room\nat all"), "failed", "MemoryError: no room."),
    ):
        tracker.start(key, len(tracker.trials) + 1, {})
        tracker.add_epoch(key, epoch_metrics(0.9), last=False)
        tracker.end(key, failed=True)
        tracker.explain(key, error)
        assert (tracker.trials[key].state, tracker.trials[key].reason) == (state, reason)
    assert [trial.key for trial in rank(tracker.trials, ACCURACY)] == ["a"]


def test_a_trial_that_never_ran_is_not_ranked() -> None:
    assert not Trial(1, "a", {}, ACCURACY, state="failed").is_ranked
