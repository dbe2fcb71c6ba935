"""A search space, and what becomes of the trials in it; no Ray."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import InputError, JobFailedError, UserError
from eagleray.core.ray_session import Cluster
from eagleray.training.search_space import Choice, Range, SearchSpace, default_space, read_space
from eagleray.training.spec import TrainSpec
from eagleray.training.spec_file import make_spec, read_spec
from eagleray.training.trials import Trial, TrialTracker, TuneResult, rank
from eagleray.training.tune_report import ranking_rows, render_tune_page, summarize
from eagleray.training.tuning import Budget, require_budget, share_cluster

GIVEN = {"data": "flowers/", "name": "flowers"}
METRIC = "validation_accuracy"


def space_of(text: str, **fields: Any) -> SearchSpace:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        file.write_text(text)
        return read_space(str(file), {**GIVEN, **fields})


def test_a_space_is_read_with_numbers_as_people_write_them() -> None:
    space = space_of(
        "fixed: {architecture: resnet20, epochs: 6}\n"
        "search:\n"
        "  learning_rate: {log_uniform: [1e-4, 1e-1]}\n"
        "  weight_decay: {choice: [1e-5, 0]}\n"
        "  randaugment: {int: [0, 12]}\n"
        "  dropout: {uniform: [0, 0.5]}\n"
    )
    assert space.fixed == {"architecture": "resnet20", "epochs": 6, **GIVEN}
    assert space.searched == {
        "learning_rate": Range("log_uniform", 1e-4, 1e-1),
        "weight_decay": Choice((1e-5, 0.0)),
        "randaugment": Range("int", 0, 12),
        "dropout": Range("uniform", 0.0, 0.5),
    }
    assert set(space.distributions()) == set(space.searched)
    spec = space.spec({"learning_rate": 0.01, "randaugment": 3})
    assert (spec.architecture, spec.learning_rate, spec.randaugment) == ("resnet20", 0.01, 3)


def test_the_default_is_what_the_specification_has_or_what_is_nearest() -> None:
    space = space_of(
        "search:\n"
        "  learning_rate: {log_uniform: [0.01, 0.1]}\n"  # 0.002 is below
        "  momentum: {uniform: [0.1, 0.95]}\n"  # 0.9 is inside
        "  optimizer: {choice: [sgd, adamw]}\n"
        "  architecture: {choice: [lenet5, resnet20]}\n"  # none by default
    )
    assert space.default() == {
        "learning_rate": 0.01,
        "momentum": 0.9,
        "optimizer": "adamw",
        "architecture": "lenet5",
    }


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("learning_rat: {uniform: [0, 1]}", "named 'learning_rat'. Nearest: learning_rate"),
        ("data: {choice: [a, b]}", "all trials have the same data"),
        ("name: {choice: [a, b]}", "all trials have the same name"),
        ("folds: {int: [0, 3]}", "all trials have the same folds"),
        ("epochs: {int: [1, 3]}", "all trials have the same epochs"),
        ("workers: {int: [1, 3]}", "all trials have the same workers"),
        ("learning_rate: {uniform: [0.5, 0.1]}", "uniform [0.5, 0.1] is empty"),
        ("learning_rate: {uniform: [0.1, 0.1]}", "is empty"),
        ("learning_rate: {uniform: [.nan, 0.1]}", "is empty"),
        ("learning_rate: {uniform: [0.1, .inf]}", "uniform ends somewhere"),
        ("learning_rate: {log_uniform: [0, 0.1]}", "log_uniform begins above 0"),
        ("learning_rate: {uniform: [fast, slow]}", "uniform takes two numbers"),
        ("learning_rate: {uniform: 0.1}", "uniform takes a list"),
        ("learning_rate: {normal: [0, 1]}", "must be one of choice, uniform, log_uniform, int"),
        ("learning_rate: 0.1", "must be one of choice"),
        ("optimizer: {choice: []}", "choice is empty"),
        ("optimizer: {choice: [adamw, sdg]}", "search.optimizer: 'sdg'"),
        ("unfreeze: {choice: [[1, 2]]}", "no single value"),
        ("batch_size: {uniform: [16, 64]}", "search.batch_size"),
        ("batch_size: {int: [0, 64]}", "search.batch_size: 0"),
        ("batch_size: {int: [0.5, 64]}", "int takes whole numbers"),
        ("dropout: {uniform: [0, 1]}", "search.dropout: 1.0"),
        ("loss: {choice: [mse]}", "loss mse is not for multiclass"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(search: str, sentence: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        space_of(f"search:\n  {search}\n")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("search: {horizontal_flip: {choice: [true]}}\nfixd: {}", "'fixd' is neither"),
        ("fixed: {epochs: 3}", "searches nothing"),
        ("search: [horizontal_flip]", "search must hold fields"),
        (
            "fixed: {horizontal_flip: true}\nsearch: {horizontal_flip: {choice: [true]}}",
            "horizontal_flip is fixed and searched",
        ),
        ("fixed: {epochs: 0}\nsearch: {horizontal_flip: {choice: [true]}}", "epochs must "),
        ("fixed: {epoch: 3}\nsearch: {horizontal_flip: {choice: [true]}}", "Nearest: epochs"),
        ("search: {horizontal_flip: ", "is not YAML"),
        ("- horizontal_flip", "must contain fields"),
    ],
)
def test_a_file_that_is_no_space_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        space_of(text)
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(InputError, match="There is no search space nowhere"):
        read_space("nowhere.yaml", GIVEN)


def test_a_field_that_is_given_is_not_searched() -> None:
    space = space_of(
        "search: {learning_rate: {uniform: [0.1, 0.2]}, horizontal_flip: {choice: [true, false]}}",
        learning_rate="0.5",
    )
    assert set(space.searched) == {"horizontal_flip"}
    assert space.spec(space.default()).learning_rate == 0.5
    with pytest.raises(InputError, match="nothing is left to search"):
        space_of("search: {horizontal_flip: {choice: [true, false]}}", horizontal_flip=True)


def test_the_space_of_those_who_name_none() -> None:
    space = default_space({**GIVEN, "batch_size": "16"})
    assert set(space.searched) == {
        *(
            "learning_rate",
            "optimizer",
            "weight_decay",
            "random_translation",
            "horizontal_flip",
            "label_smoothing",
        )
    }
    assert space.spec(space.default()) == make_spec({**GIVEN, "batch_size": 16})
    assert "label_smoothing" not in default_space({**GIVEN, "task": "regression"}).searched


def test_a_combination_that_a_specification_refuses_is_for_the_trial_to_say() -> None:
    space = space_of("search: {cutmix: {choice: [0, 1]}}", task="regression")
    assert space.default() == {"cutmix": 0.0}
    with pytest.raises(InputError, match="cutmix is not for regression"):
        space.spec({"cutmix": 1.0})


finite = st.floats(1e-6, 0.4, allow_nan=False)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.tuples(finite, finite).map(
                lambda ends: Range("log_uniform", min(ends), max(ends) + 1e-3)
            ),
            "dropout": st.tuples(finite, finite).map(
                lambda ends: Range("uniform", min(ends), max(ends) + 1e-3)
            ),
            "randaugment": st.integers(0, 29).map(lambda low: Range("int", low, 30)),
            "optimizer": st.lists(
                st.sampled_from(["adamw", "adam", "sgd"]), min_size=1, unique=True
            ).map(lambda values: Choice(tuple(values))),
            "architecture": st.lists(st.text(min_size=1), min_size=1, unique=True).map(
                lambda values: Choice(tuple(values))
            ),
        },
    ).filter(bool)
)
def test_a_space_comes_back_from_its_file(searched: dict[str, Any]) -> None:
    space = SearchSpace(GIVEN, searched)
    again = space_of(space.to_yaml())
    assert again == space
    for name, value in again.default().items():
        domain = searched[name]
        if isinstance(domain, Range):
            assert domain.low <= float(value or 0) <= domain.high
        else:
            assert value in domain.values


# --- trials -----------------------------------------------------------------------------------


def epoch(accuracy: float) -> dict[str, float]:
    return {METRIC: accuracy, "train_loss": 1.0}


def tracker_with(folder: Path, *runs: tuple[str, list[float]]) -> TrialTracker:
    """Enter trials of three epochs at most; a state beside `stopped` ends them."""
    tracker = TrialTracker(METRIC, str(folder))
    for number, (key, scores) in enumerate(runs, start=1):
        tracker.begin(key, number, {"learning_rate": 10.0**-number, "horizontal_flip": True})
        (folder / key).mkdir(parents=True)
        (folder / key / "step-000000001.safetensors").touch()
        for place, score in enumerate(scores, start=1):
            tracker.add_epoch(key, epoch(score), last=place == 3)
        tracker.end(key)
    return tracker


def test_trials_are_ranked_by_their_best_epoch_and_only_the_best_keeps_its_weights(
    tmp_path: Path,
) -> None:
    nan = float("nan")
    tracker = tracker_with(
        tmp_path, ("a", [0.3, 0.7, 0.6]), ("b", [0.2]), ("c", [nan, 0.7, nan]), ("d", [nan])
    )
    assert [trial.key for trial in rank(tracker.trials)] == ["a", "c", "b"]
    states = {key: trial.state for key, trial in tracker.trials.items()}
    assert states == {"a": "finished", "b": "stopped", "c": "finished", "d": "stopped"}
    assert [folder.name for folder in tmp_path.iterdir()] == ["a"]


def test_a_trial_that_fails_has_its_reason_and_no_rank(tmp_path: Path) -> None:
    tracker = tracker_with(tmp_path, ("a", [0.3, 0.3, 0.3]))
    for key, error, state, reason in (
        ("b", JobFailedError("The loss is no number."), "failed", "The loss is no number."),
        ("c", InputError("Too small."), "refused", "Too small."),
        ("d", MemoryError("no room\nat all"), "failed", "MemoryError: no room."),
    ):
        tracker.begin(key, len(tracker.trials) + 1, {})
        tracker.add_epoch(key, epoch(0.9), last=False)
        tracker.end(key, failed=True)
        tracker.explain(key, error)
        assert (tracker.trials[key].state, tracker.trials[key].reason) == (state, reason)
    assert [trial.key for trial in rank(tracker.trials)] == ["a"]


def tuned_with(folder: Path, *runs: tuple[str, list[float]]) -> TuneResult:
    trials = tracker_with(folder, *runs).trials
    space = space_of(
        "search: {learning_rate: {log_uniform: [1e-9, 1]}, "
        "horizontal_flip: {choice: [true, false]}}"
    )
    return TuneResult(tuple(trials.values()), tuple(rank(trials)), space, METRIC, str(folder))


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            [("a", [0.5, 0.6, 0.6]), ("b", [0.4, 0.7, 0.8])],
            "Trial 2 is the best, validation accuracy 0.8000; the default reaches 0.6000",
        ),
        ([("a", [0.5, 0.6, 0.7]), ("b", [0.7])], "Nothing that was tried is better"),
        ([("a", [float("nan")]), ("b", [0.7])], "Trial 2 is the best"),
    ],
)
def test_the_summary_compares_with_the_default(
    tmp_path: Path, runs: list[tuple[str, list[float]]], sentence: str
) -> None:
    assert sentence in summarize(tuned_with(tmp_path, *runs))


def test_the_page_has_every_trial(tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path, ("a", [0.5, 0.6, 0.6]), ("b", [0.4]), ("c", [0.4, 0.7, 0.8]))
    rows = ranking_rows(tuned)
    assert [(row.rank, row.name, row.score, row.gray) for row in rows] == [
        ("1", "3", "0.8000", False),
        ("2", "1 default", "0.6000", False),
        ("3", "2", "0.4000", True),
    ]
    page = render_tune_page(tuned, make_spec(GIVEN), "flowers-1").decode()
    assert "best: trial 3" in page
    assert "the default" in page
    assert page.count("<svg") == 2  # the epochs, and the one field that is a number
    assert "7 of 60" in page


# --- the budget -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"workers": 2}, "a trial is one process"),
        ({"folds": 3}, "trials are compared on one split"),
        ({"epochs": 2}, "--grace-epochs 3 is more than the 2 epochs"),
    ],
)
def test_a_budget_that_cannot_be_is_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        require_budget(Budget(4, None, 3), make_spec({**GIVEN, **fields}))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("grace", "epochs", "expected"), [(None, 1, 1), (None, 6, 2), (None, 20, 5), (3, 20, 3)]
)
def test_a_trial_is_left_alone_while_its_learning_rate_rises(
    grace: int | None, epochs: int, expected: int
) -> None:
    assert Budget(4, None, grace).grace_period(epochs) == expected


@pytest.mark.parametrize(
    ("cluster", "at_once", "expected"),
    [
        (Cluster(8, 0, True), None, (8, {"cpu": 1})),
        (Cluster(8, 0, True), 2, (2, {"cpu": 4})),
        (Cluster(2, 0, True), 50, (2, {"cpu": 1})),
        (Cluster(16, 0, False, num_nodes=4), 1, (1, {"cpu": 4})),
        (Cluster(16, 2, True), None, (2, {"cpu": 8, "gpu": 1})),
    ],
)
def test_trials_share_what_there_is(
    cluster: Cluster, at_once: int | None, expected: tuple[int, dict[str, float]]
) -> None:
    assert share_cluster(make_spec(GIVEN), Budget(20, at_once, 1), cluster) == expected


def test_the_best_specification_comes_back_from_its_file(tmp_path: Path) -> None:
    space = default_space(GIVEN)
    spec: TrainSpec = space.spec({**space.default(), "learning_rate": 0.0123456789})
    (tmp_path / "best.yaml").write_text(spec.to_yaml())
    assert read_spec(str(tmp_path / "best.yaml"), {}) == spec


def test_a_trial_that_never_ran_is_not_ranked() -> None:
    assert not Trial(1, "a", {}, METRIC, state="failed").is_ranked
