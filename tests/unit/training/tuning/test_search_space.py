"""The search space of a tuning."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from eagleray.cli.options import option_name
from eagleray.core.errors import InputError, UserError
from eagleray.training.spec import TrainSpec, read_spec
from eagleray.training.tuning.search_space import SearchSpace, default_space, read_space

GIVEN = {"data": "flowers/", "name": "flowers"}
METRIC = "validation_accuracy"


def space_of(text: str, **fields: Any) -> SearchSpace:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        file.write_text(text)
        return read_space(str(file), {**GIVEN, **fields})


def test_a_space_is_read_with_numbers_in_any_notation() -> None:
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
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "weight_decay": CategoricalDistribution((1e-5, 0.0)),
        "randaugment": IntDistribution(0, 12),
        "dropout": FloatDistribution(0.0, 0.5),
    }
    spec = space.spec({"learning_rate": 0.01, "randaugment": 3})
    assert (spec.architecture, spec.learning_rate, spec.randaugment) == ("resnet20", 0.01, 3)


def test_the_default_is_that_of_the_specification_or_the_nearest_value() -> None:
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
        ("learning_rate: {uniform: [0.1, .inf]}", "uniform [0.1, inf] must have finite bounds"),
        ("learning_rate: {log_uniform: [0, 0.1]}", "must have a lower bound above 0"),
        ("learning_rate: {uniform: [fast, slow]}", "uniform takes two numbers"),
        ("learning_rate: {uniform: 0.1}", "uniform takes a list"),
        ("learning_rate: {normal: [0, 1]}", "must be one of choice, uniform, log_uniform, int"),
        ("learning_rate: 0.1", "must be one of choice"),
        ("optimizer: {choice: []}", "choice is empty"),
        ("optimizer: {choice: [adamw, sdg]}", "search.optimizer: 'sdg'"),
        ("unfreeze: {choice: [[1, 2]]}", "is not a single value"),
        ("batch_size: {uniform: [16, 64]}", "search.batch_size"),
        ("batch_size: {int: [0, 64]}", "search.batch_size: 0"),
        ("batch_size: {int: [0.5, 64]}", "int takes integers"),
        ("dropout: {uniform: [0, 1]}", "search.dropout: 1.0"),
        ("loss: {choice: [mse]}", "loss mse is not for multiclass"),
    ],
)
def test_an_invalid_distribution_is_refused_in_one_sentence(search: str, sentence: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        space_of(f"search:\n  {search}\n")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("search: {horizontal_flip: {choice: [true]}}\nfixd: {}", "'fixd' is neither"),
        ("fixed: {epochs: 3}", "searches nothing"),
        ("search: [horizontal_flip]", "search must contain fields"),
        (
            "fixed: {horizontal_flip: true}\nsearch: {horizontal_flip: {choice: [true]}}",
            "horizontal_flip is fixed and searched",
        ),
        (
            "fixed: {epochs: 0}\nsearch: {horizontal_flip: {choice: [true]}}",
            "epochs must be greater",
        ),
        ("fixed: {epoch: 3}\nsearch: {horizontal_flip: {choice: [true]}}", "Nearest: epochs"),
        ("fixed: {epoch: 3}\nsearch: {horizontal_flip: {choice: [true]}}", "yaml: No field of"),
        ("search: {learning_rat: {uniform: [0, 1]}}", "yaml: No field of"),
        ("search: {horizontal_flip: ", "is not YAML"),
        ("- horizontal_flip", "holds no fields"),
    ],
)
def test_an_invalid_file_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        space_of(text)
    assert sentence in str(caught.value)


def test_all_faults_of_a_space_are_reported_at_once() -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        space_of(
            "fixd: {}\n"
            "fixed: {momentum: 0.5, patience: -1}\n"
            "search:\n"
            "  momentum: {uniform: [0, 0.5]}\n"
            "  learning_rat: {uniform: [0, 1]}\n"
            "  optimizer: {choice: [adamw, sdg]}\n"
            "  dropout: {uniform: [0.5, 0.1]}\n"
            "  pretrained: {choice: 3}\n",
            freeze="1",  # which needs the field that is at fault
        )
    said = str(caught.value)
    assert said.count("space.yaml") == 1
    for fault in (
        "space.yaml: 'fixd' is neither",
        "; momentum is fixed and searched",
        "named 'learning_rat'. Nearest: learning_rate",
        "; search.optimizer: 'sdg': ",
        "; search.dropout: uniform [0.5, 0.1] is empty",
        "; search.pretrained: choice takes a list",
        "; patience must be greater than or equal to 0.",
    ):
        assert fault in said
    assert "freeze" not in said


def test_a_field_at_fault_is_named_as_the_user_gave_it(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("fixed: {patience: 2}\nsearch: {horizontal_flip: {choice: [true]}}\n")
    with pytest.raises(InputError, match=r"^--epochs must be greater"):
        read_space(str(file), {**GIVEN, "epochs": "0"}, name=option_name)
    with pytest.raises(InputError, match=r"^--epochs must be greater"):
        default_space({**GIVEN, "epochs": "0"}, name=option_name)
    space = read_space(str(file), {**GIVEN, "epochs": "3"}, name=option_name)
    spec = space.spec(space.default())
    assert spec.name_of("epochs") == "--epochs"
    assert spec.name_of("patience") == f"{file}: patience"


def test_a_missing_file_is_refused() -> None:
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


def test_the_default_space() -> None:
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
    assert space.spec(space.default()) == TrainSpec.make({**GIVEN, "batch_size": 16})
    assert "label_smoothing" not in default_space({**GIVEN, "task": "regression"}).searched


def test_an_invalid_combination_is_left_to_the_trial() -> None:
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
                lambda ends: FloatDistribution(min(ends), max(ends) + 1e-3, log=True)
            ),
            "dropout": st.tuples(finite, finite).map(
                lambda ends: FloatDistribution(min(ends), max(ends) + 1e-3)
            ),
            "randaugment": st.integers(0, 29).map(lambda low: IntDistribution(low, 30)),
            "optimizer": st.lists(
                st.sampled_from(["adamw", "adam", "sgd"]), min_size=1, unique=True
            ).map(lambda values: CategoricalDistribution(tuple(values))),
            "architecture": st.lists(st.text(min_size=1), min_size=1, unique=True).map(
                lambda values: CategoricalDistribution(tuple(values))
            ),
        },
    ).filter(bool)
)
def test_a_space_is_read_back_from_its_file(searched: dict[str, Any]) -> None:
    space = SearchSpace(GIVEN, searched)
    again = space_of(space.to_yaml())
    assert again == space
    for name, value in again.default().items():
        distribution = searched[name]
        if isinstance(distribution, CategoricalDistribution):
            assert value in distribution.choices
        else:
            assert distribution.low <= float(value or 0) <= distribution.high


def test_the_best_specification_is_read_back_from_its_file(tmp_path: Path) -> None:
    space = default_space(GIVEN)
    spec: TrainSpec = space.spec({**space.default(), "learning_rate": 0.0123456789})
    (tmp_path / "best.yaml").write_text(spec.to_yaml())
    assert read_spec(str(tmp_path / "best.yaml"), {}) == spec
