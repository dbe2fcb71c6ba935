"""The specification of a training run: validation, YAML and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from eagleray.cli.options import with_spec_options
from eagleray.core.errors import InputError, UserError
from eagleray.training.spec import TrainSpec, read_spec

LEAST = {"data": "d", "name": "n"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "a b"}, "name: "),
        ({"epochs": 0}, "epochs must be greater"),
        ({"learning_rate": "fast"}, "learning_rate must be a valid number"),
        ({"epoch": 3}, "No field of a specification is named 'epoch'. Nearest: epochs."),
        ({"batch_size": 1, "workers": 2}, "batch_size 1 is divided among 2 workers"),
        (
            {"batch_size": 8, "workers": "1..4", "gradient_accumulation_steps": 4},
            "must be at least 16",
        ),
        ({"workers": "4..2"}, "workers: '4..2' is not a number of workers such as 4, or a range"),
        ({"workers": "many"}, "workers: 'many' is not a number of workers such as 4"),
        ({"validation_fraction": 0}, "validation_fraction must be above 0"),
        ({"validation_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"label_column": "a", "label_columns": ["b", "c"]}, "exclude each other"),
        ({"folds": 1}, "folds must be 2 or more"),
        ({"tags": "vision"}, "tags must be KEY=VALUE"),
        ({"tags": "a,b=1"}, "tags must be KEY=VALUE"),
        ({"tags": "mlflow.user=me"}, "tags must not begin with mlflow. or eagleray."),
        ({"tags": ["a=1", "a=2"]}, "tags must name each key once, and repeat 'a'"),
        (
            {"tags": ["vision", "a,b=1", "fine=1", "mlflow.user=me", "=x"]},
            "/ in it, not 'vision', 'a,b=1', '=x'; tags must not begin with mlflow. or eagleray., "
            "as in 'mlflow.user=me'",
        ),
        ({"tags": {"team": ["a", "b"], "fine": 1}}, "tags: take one text per tag; team has"),
        ({"tags": {"a,b": 1, "c,d": 2}}, "in it, not 'a,b=1', 'c,d=2'"),
        ({"tags": {"a=b": "c"}}, "tags: take keys without =, not 'a=b'"),
        ({"tags": 3}, "tags must be a valid tuple"),
        ({"experiment": ""}, "experiment"),
        ({"positive": "a"}, "positive is not for multiclass; leave it out, or set task: binary"),
        (
            {"keep_duplicates_together": True, "split_file": "s.parquet"},
            "keep_duplicates_together divides the data anew, and split_file names a split",
        ),
        ({"parent": "p", "pretrained": True}, "parent and pretrained exclude each other"),
        ({"freeze": "half"}, "freeze must be a number of stages"),
        ({"freeze": 2}, "freeze would keep random weights"),
        ({"unfreeze": "3:1"}, "unfreeze requires frozen stages"),
        ({"parent": "p", "freeze": 2, "unfreeze": "soon"}, "'soon' is not EPOCH:STAGES"),
        ({"parent": "p", "freeze": 2, "unfreeze": ["5:1", "3:1"]}, "in rising order"),
        ({"parent": "p", "freeze": 2, "unfreeze": "20:1"}, "training ends after 20"),
        ({"loss": "mse"}, "loss mse is not for multiclass; take cross_entropy or focal"),
        ({"task": "regression", "loss": "bce"}, "not for regression; take mse or huber or l1"),
        ({"task": "binary", "label_smoothing": 0.1}, "label_smoothing is not for binary"),
        (
            {"task": "regression", "class_weights": "balanced"},
            "class_weights is not for regression",
        ),
        ({"task": "regression", "cutmix": 1}, "cutmix is not for regression"),
        ({"task": "multilabel", "sampler": "balanced"}, "sampler is not for multilabel"),
        ({"class_weights": "heavy"}, "class_weights: 'heavy' is not LABEL=WEIGHT with a weight"),
        ({"class_weights": ["balanced", "a=2"]}, "'balanced' is not LABEL=WEIGHT"),
        ({"class_weights": ["a=2", "b=0"]}, "'b=0' is not LABEL=WEIGHT with a weight above 0"),
        ({"class_weights": ["a=2", "a=3"]}, "class_weights: label 'a' has two weights"),
        ({"class_weights": 3}, "class_weights: take none, balanced, or weights such as"),
        ({"class_weights": "balanced", "sampler": "balanced"}, "exclude each other: each of them"),
        ({"mode": "min"}, "mode is that of a named metric: set monitor"),
    ],
)
def test_an_invalid_field_is_named_in_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        TrainSpec.make({**LEAST, **fields})
    assert sentence in str(caught.value)


def test_class_weights_are_none_balanced_or_by_label() -> None:
    def read(value: Any) -> TrainSpec:
        return TrainSpec.make({**LEAST, "class_weights": value})

    for word in ("none", "balanced"):
        assert read(word) == read([word])  # options are lists
        assert read(word).loss_options.class_weights == word
    spec = read(["a=b=0.5", "c=2"])
    assert spec.loss_options.class_weights == {"a=b": 0.5, "c": 2.0}
    assert spec.balances_classes
    assert read("c=2").label_weights == read({"c": 2}).label_weights == {"c": 2.0}
    assert not read([]).balances_classes


def test_tags_may_be_a_mapping() -> None:
    spec = TrainSpec.make({**LEAST, "tags": {"team": "vision", "year": 2026, "final": True}})
    assert spec.tags == ("team=vision", "year=2026", "final=true")
    assert spec.tag_values == {"team": "vision", "year": "2026", "final": "true"}


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="name is required"):
        TrainSpec.make({"data": "d"})


@given(
    st.fixed_dictionaries(
        {
            "data": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
            "epochs": st.integers(1, 10**6),
            "learning_rate": st.floats(1e-9, 10),
            "horizontal_flip": st.booleans(),
            "label_columns": st.lists(st.text(min_size=1), max_size=3).map(tuple),
            "separator": st.none() | st.sampled_from(["|", "#", ": ", "'", '"', "\\", "\n", "no"]),
            "workers": st.sampled_from([1, 7, "2..8"]),
            "class_weights": st.sampled_from(["none", "balanced", ("no=2",), ("a: b=1e-3", "#=4")]),
            "group_column": st.none() | st.text(),
        }
    )
)
def test_a_specification_is_read_back_from_its_file(fields: dict[str, Any]) -> None:
    import tempfile

    spec = TrainSpec.model_validate({"name": "n", **fields, "batch_size": 64})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.yaml"
        file.write_text(spec.to_yaml(), encoding="utf-8")
        assert read_spec(str(file), {}) == spec
        assert read_spec(str(file), {"epochs": "5"}).epochs == 5


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("epochs: [", "line 1 is not YAML"),
        ("- epochs", "holds no fields"),
        ("data: d\nname: n\nepochz: 3\n", "Nearest: epochs"),
        ("data: d\nname: n\nname: m\n", "spec.yaml, line 3: name is given twice, first in line 2"),
        (
            "data: d\nname: n\nlearning_rate: .inf\nmixup: .nan\n",
            "spec.yaml: learning_rate must be a finite number; mixup must be a finite number.",
        ),
        ("data: d\nname: n\nepochs: none\n", "spec.yaml: epochs must be a valid integer"),
        (
            "data: d\nname: n\nshift: 0.1\nclip_norm: 1.0\n",
            "spec.yaml: shift is not a field of a specification; clip_norm is not a field of a "
            "specification.",
        ),
        (
            "data: d\nname: n\nepochz: 3\nbatch_size: none\nlearning_rate: 0\n",
            "spec.yaml: epochz is not a field of a specification, but epochs is; batch_size must "
            "be a valid integer, unable to parse string as an integer; learning_rate must be "
            "greater than 0.",
        ),
        (
            "data: d\nname: n\nfolds: 1\nfreeze: half\nloss: mse\n",
            "spec.yaml: folds must be 2 or more, or 0 for none; freeze must be a number of stages "
            "from 0 on, or backbone; loss mse is not for multiclass",
        ),
    ],
)
def test_an_invalid_file_is_refused_in_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "spec.yaml").write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_spec(str(tmp_path / "spec.yaml"), {})
    assert sentence in str(caught.value)
    with pytest.raises(InputError, match="There is no specification"):
        read_spec(str(tmp_path / "none.yaml"), {})


def test_every_field_is_an_option_and_only_given_options_are_passed() -> None:
    heard: list[dict[str, Any]] = []

    @with_spec_options(TrainSpec, argument="data")
    def main(fields: dict[str, Any]) -> None:
        """Train."""
        heard.append(fields)

    app = typer.Typer()
    app.command()(main)
    runner = CliRunner(env={"COLUMNS": "200"})
    done = runner.invoke(
        app,
        [
            "pics/",
            "--epochs",
            "3",
            "--horizontal-flip",
            "--workers",
            "1..4",
            "--label-columns",
            "a",
            "--label-columns",
            "b",
        ],
    )
    assert done.exit_code == 0, done.output
    assert heard == [
        {
            "data": "pics/",
            "epochs": "3",
            "horizontal_flip": True,
            "workers": "1..4",
            "label_columns": ["a", "b"],
        }
    ]
    spec = TrainSpec.make({**heard[0], "name": "n", "task": "multilabel"})
    assert (spec.epochs, spec.max_workers, spec.label_columns) == (3, 4, ("a", "b"))
    shown = runner.invoke(app, ["--help"]).output
    for name in TrainSpec.model_fields:
        if name != "data":
            assert f"--{name.replace('_', '-')}" in shown


def test_every_field_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    for name, field in TrainSpec.model_fields.items():
        assert f"| `{name}` |" in page, name
        assert str(field.description) in page.replace("\\|", "|"), name
