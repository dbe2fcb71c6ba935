"""A registered version as MLflow's own tools load it, through its `MLmodel`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server

from eagleray.core.errors import PackageError, UnknownNameError
from eagleray.inference.predictor import Predictor
from eagleray.models.package import write_package
from eagleray.registry.model_folder import write_model_folder
from eagleray.registry.pyfunc import PyfuncModel
from eagleray.registry.registry import Registry
from eagleray.tasks import Binary, Multiclass, Multilabel, Regression
from tests.support.attributes import package_with_attributes
from tests.support.models import DIGITS, golden_png, lenet_module, small_package

PACKAGE = small_package(name="digits")
COLUMNS = ["label", "score", "probabilities", "status", "reason", "message"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    write_model_folder(PACKAGE, str(folder))
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture
def mlflow_of_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Have MLflow's own functions use the registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.settings.mlflow_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "eagleray")
    return registry


def text_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def expected_label(image: bytes) -> str | None:
    prediction = Predictor(PACKAGE, engine="eager").predict([image])[0].prediction
    assert prediction is not None
    return prediction.label


def test_an_alias_loads_as_a_pyfunc_model(mlflow_of_registry: Registry, name: str) -> None:
    registry = mlflow_of_registry
    version = registry.register(small_package(name=name), alias="production")
    model = mlflow.pyfunc.load_model(f"models:/{name}@production")
    result = model.predict(pd.DataFrame({"image": [golden_png(0)]}))
    assert list(result["label"]) == [expected_label(golden_png(0))]
    assert model.metadata.metadata == {"package_digest": version.digest, "task": "multiclass"}
    assert list(model.input_example["image"]) == [golden_png(0)]
    assert registry.load(version).digest == version.digest
    assert model.metadata.run_id == version.run_id
    shown = registry.client.get_run(version.run_id).data.tags["mlflow.log-model.history"]
    assert [entry["artifact_path"] for entry in json.loads(shown)] == ["model"]


def test_an_image_is_bytes_base64_or_a_path_and_a_bad_one_has_a_reason(
    model: Any, tmp_path: Path
) -> None:
    (tmp_path / "2.png").write_bytes(golden_png(2))
    images = [golden_png(0), text_of(golden_png(1)), str(tmp_path / "2.png")]
    bad = [str(tmp_path / "none.png"), b"text", None]
    result = model.predict(pd.DataFrame({"image": [*images, *bad]}, index=range(10, 16)))
    assert list(result.columns) == COLUMNS
    assert list(result.index) == list(range(10, 16))
    assert list(result["status"]) == ["ok"] * 3 + ["failed"] * 3
    assert list(result["reason"]) == [None] * 3 + ["missing", "not_an_image", "not_an_image"]
    assert list(result["label"][:3]) == [expected_label(golden_png(seed)) for seed in range(3)]
    assert result["label"].iloc[3] is None
    scores = result["probabilities"].iloc[0]
    assert list(scores) == list(DIGITS.labels)
    assert sum(scores.values()) == pytest.approx(1.0)
    assert scores[result["label"].iloc[0]] == result["score"].iloc[0]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [text_of(golden_png(0))]},
        {"instances": [{"image": text_of(golden_png(0))}]},
        {"dataframe_split": {"columns": ["image"], "data": [[text_of(golden_png(0))]]}},
        {"dataframe_records": [{"image": text_of(golden_png(0))}]},
    ],
    ids=lambda body: next(iter(body)),
)
def test_every_form_of_mlflow_s_requests_is_understood(model: Any, body: dict[str, Any]) -> None:
    response = scoring_server.invocations(
        json.dumps(body), "application/json", model, model.metadata.get_input_schema()
    )
    predictions = json.loads(response.response)["predictions"]
    assert [row["label"] for row in predictions] == [expected_label(golden_png(0))]
    assert predictions[0]["reason"] is None


def test_a_server_reads_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.png").write_bytes(golden_png(0))
    write_model_folder(PACKAGE, str(tmp_path / "model"))
    monkeypatch.setenv(scoring_server._SERVER_MODEL_PATH, str(tmp_path / "model"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    table = pd.DataFrame({"image": [str(tmp_path / "0.png"), text_of(golden_png(0))]})
    response = scoring_server.invocations(
        table.to_csv(index=False), "text/csv", model, model.metadata.get_input_schema()
    )
    rows = json.loads(response.response)["predictions"]
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert "servers read no locations" in rows[0]["message"]


def test_mlflow_evaluates_a_classifier_by_its_labels(
    mlflow_of_registry: Registry, name: str
) -> None:
    mlflow_of_registry.register(small_package(name=name))
    images = [golden_png(seed) for seed in range(4)]
    labels = [expected_label(image) for image in images[:3]] + ["zero"]
    with mlflow.start_run():
        found = mlflow.models.evaluate(
            f"models:/{name}/1",
            pd.DataFrame({"image": images, "label": labels}),
            targets="label",
            model_type="classifier",
            model_config={"column": "label"},
        )
    expected = 0.75 + 0.25 * (expected_label(images[3]) == "zero")
    assert found.metrics["accuracy_score"] == expected


def test_tasks_have_their_own_columns() -> None:
    table = pd.DataFrame({"image": [golden_png(0)]})

    def row(task: Any) -> dict[str, Any]:
        package = small_package(task=task, module=lenet_module(task.num_outputs))
        found: dict[str, Any] = PyfuncModel(package).predict(table).to_dict(orient="records")[0]
        return found

    number = row(Regression())
    assert list(number) == ["value", "status", "reason", "message"]
    assert isinstance(number["value"], float)
    several = row(Multilabel(labels=("a", "b"), thresholds=(0.0, 1.0)))
    assert several["labels"] == ["a"]
    assert list(several["probabilities"]) == ["a", "b"]
    assert list(row(Binary(labels=("bad", "good")))["probabilities"]) == ["bad", "good"]


def test_attributes_are_columns_beside_the_image(tmp_path: Path) -> None:
    package = package_with_attributes()
    write_model_folder(package, str(tmp_path / "model"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    rows: list[dict[str, object]] = [{"age": 41, "site": "north"}, {"age": None, "site": "south"}]
    result = model.predict(pd.DataFrame([{"image": golden_png(0), **row} for row in rows]))
    outcomes = Predictor(package, engine="eager").predict([golden_png(0)] * 2, rows)
    assert list(result["score"]) == [
        outcome.prediction.score for outcome in outcomes if outcome.prediction
    ]
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"missing inputs \['age'"):
        model.predict(pd.DataFrame({"image": [golden_png(0)], "site": ["north"]}))


def test_an_altered_package_is_refused(tmp_path: Path) -> None:
    write_model_folder(PACKAGE, str(tmp_path / "model"))
    (tmp_path / "model/package/model.safetensors").write_bytes(b"other")
    with pytest.raises(PackageError, match="is not the file"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Nearest: label"):
        PyfuncModel(PACKAGE, column="labl")


def test_the_package_is_the_same_in_the_folder_and_alone(tmp_path: Path) -> None:
    write_model_folder(PACKAGE, str(tmp_path / "model"))
    write_package(PACKAGE, str(tmp_path / "alone"))
    files = {file.name: file.read_bytes() for file in (tmp_path / "alone").rglob("*.*")}
    found = {file.name: file.read_bytes() for file in (tmp_path / "model/package").rglob("*.*")}
    assert found == files
    requirements = (tmp_path / "model/requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in requirements] == [
        "eagleray",
        "mlflow",
        "torch",
        "torchvision",
    ]
    assert not any("+" in line for line in requirements)
    assert not [file for file in (tmp_path / "model").rglob("*") if file.suffix in (".pkl", ".py")]


def test_labels_that_are_paths_have_a_column_of_levels(tmp_path: Path) -> None:
    task = Multiclass(labels=("animal/cat", "animal/dog", "stone"))
    write_model_folder(small_package(name="digits", task=task), str(tmp_path / "model"))
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    result = loaded.predict(pd.DataFrame({"image": [golden_png(0)]}))
    assert list(result.columns) == [*COLUMNS[:3], "label_levels", *COLUMNS[3:]]
    assert "label_levels" in loaded.metadata.get_output_schema().input_names()
    (levels,) = result["label_levels"]
    (probabilities,) = result["probabilities"]
    animal = probabilities["animal/cat"] + probabilities["animal/dog"]
    expected = max(animal, probabilities["stone"])
    assert levels[0]["label"] == ("animal" if animal > probabilities["stone"] else "stone")
    assert levels[0]["score"] == pytest.approx(expected)
    assert levels[1]["label"] == result["label"][0]
