"""A classifier gets an outlier score: fitted, kept in the package, and the same in every engine."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eagleray.cli.models import models_app
from eagleray.compression.job import run_quantization
from eagleray.compression.prepare import open_quantization
from eagleray.compression.spec import QuantizeSpec
from eagleray.core.errors import InputError, PackageError
from eagleray.exports.graph import ExportedNetwork, onnx_graph
from eagleray.imaging import decode
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.models.manifest import ModelManifest
from eagleray.models.network import ImageNetwork
from eagleray.models.networks.features import features_of
from eagleray.models.networks.outlier_head import OutlierHead, residuals
from eagleray.models.outliers import MAX_LEVELS, OutlierStatistics, parse_outliers
from eagleray.models.package import OUTLIERS_FILE, ModelPackage, read_package, write_package
from eagleray.outliers.job import OutliersSummary, open_outliers, run_outliers, with_outliers
from eagleray.outliers.moments import Moments
from eagleray.outliers.spec import OutliersSpec
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.tasks import Binary, Multilabel, Prediction, Regression, Task
from eagleray.tasks.base import only_tensor
from tests.support.attributes import package_with_attributes
from tests.support.images import encode
from tests.support.models import registry_in
from tests.support.quantized import (
    CONTRACT,
    NUM_TRAIN,
    NUM_VALIDATION,
    SilentReporter,
    digit_split,
    digits_package,
    register_with_split,
)

NUM_FEATURES = 84  # of the last layer of a LeNet-5


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_in(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def parent(registry: Registry, folder: Path) -> ModelVersion:
    return register_with_split(registry, digits_package(folder), digit_split(folder))


def score(registry: Registry, reference: str, **fields: Any) -> OutliersSummary:
    spec = OutliersSpec.make({"model": reference, **fields})
    return run_outliers(open_outliers(spec, registry.settings), SilentReporter())


@pytest.fixture(scope="module")
def scored(registry: Registry, parent: ModelVersion) -> OutliersSummary:
    return score(registry, parent.reference, alias="unusual")


@pytest.fixture(scope="module")
def package(registry: Registry, scored: OutliersSummary) -> ModelPackage:
    return registry.load(scored.version)


def predict(package: ModelPackage, images: list[bytes], **options: Any) -> list[Prediction]:
    options = {"engine": "eager", "precision": "float32", **options}
    outcomes = Predictor(package, device="cpu", **options).predict(images)
    return [outcome.prediction for outcome in outcomes if outcome.prediction is not None]


def scores(predictions: list[Prediction]) -> np.ndarray[Any, Any]:
    return np.array([one.outlier_score for one in predictions], np.float64)


def digits(folder: Path) -> list[bytes]:
    return [Path(uri).read_bytes() for uri in digit_split(folder).test.uris[:64]]


def noise(count: int = 32) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32), np.uint8)
    return [encode(image, "png") for image in pixels]


def test_moments_in_batches_are_those_of_all_vectors() -> None:
    vectors = np.random.default_rng(0).normal(3.0, 2.0, (1000, 7)).astype(np.float32)
    moments = Moments(7)
    for batch in np.array_split(vectors, [1, 130, 131, 700]):
        moments.add(batch)
    exact = vectors.astype(np.float64)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(exact.T, bias=True), rtol=1e-10)


def test_the_residual_is_the_length_of_what_no_direction_holds() -> None:
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    mean, features = generator.normal(size=6), generator.normal(size=(5, 6))
    expected = np.linalg.norm((features - mean) @ basis[:, 2:], axis=1)
    arrays = (features, mean, basis[:, :2])
    found = residuals(*(torch.tensor(one, dtype=torch.float32) for one in arrays))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_directions_hold_most_of_the_variance(
    package: ModelPackage, folder: Path, registry: Registry, parent: ModelVersion
) -> None:
    features = features_of(registry.load(parent)).build_module()
    network = ImageNetwork(features, CONTRACT).eval()
    uris = digit_split(folder).train.uris
    pixels = np.stack([decode(Path(uri).read_bytes(), CONTRACT).pixels for uri in uris])
    with torch.inference_mode():
        vectors = only_tensor(network(torch.from_numpy(pixels))).double().numpy()
    statistics = package.outliers
    assert statistics is not None
    np.testing.assert_allclose(statistics.mean, vectors.mean(axis=0), atol=1e-5)
    centered, count = vectors - vectors.mean(axis=0), statistics.directions.shape[1]
    along = (centered @ statistics.directions).var(axis=0)
    held = [along[:number].sum() for number in range(count + 1)]
    total = centered.var(axis=0).sum()
    assert held[-2] / total < 0.9 <= held[-1] / total
    np.testing.assert_allclose(
        statistics.directions.T @ statistics.directions, np.eye(count), atol=1e-5
    )


def test_the_version_predicts_as_its_parent_and_keeps_its_origin(
    registry: Registry, parent: ModelVersion, scored: OutliersSummary, folder: Path
) -> None:
    before, after = registry.load(parent), registry.load(scored.version)
    assert scored.version.aliases == ("unusual",)
    assert after.manifest.lineage.parent == before.digest
    assert after.manifest.lineage.test_digest == before.manifest.lineage.test_digest
    assert (scored.fitted.num_train, scored.fitted.num_validation) == (NUM_TRAIN, NUM_VALIDATION)
    plain, rich = predict(before, digits(folder)), predict(after, digits(folder))
    assert all(one.outlier_score is None for one in plain)
    for one, other in zip(plain, rich, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_scores_are_shares_of_validation_images(package: ModelPackage, folder: Path) -> None:
    validation = [Path(uri).read_bytes() for uri in digit_split(folder).validation.uris]
    found = np.sort(scores(predict(package, validation)))
    np.testing.assert_allclose(found, np.arange(NUM_VALIDATION) / NUM_VALIDATION, atol=0.011)


def test_noise_is_more_unusual_than_digits(package: ModelPackage, folder: Path) -> None:
    assert np.median(scores(predict(package, noise()))) > 0.75
    assert 0.2 < np.median(scores(predict(package, digits(folder)))) < 0.9


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [("openvino", "float32", 0.011), ("eager", "bfloat16", 0.1)],
)
def test_engines_agree(
    package: ModelPackage, folder: Path, engine: str, precision: str, tolerance: float
) -> None:
    images = digits(folder)
    expected = scores(predict(package, images))
    found = scores(predict(package, images, engine=engine, precision=precision))
    assert np.abs(found - expected).max() <= tolerance


def test_a_package_is_written_and_read(package: ModelPackage, tmp_path: Path) -> None:
    write_package(package, str(tmp_path / "scored"))
    again = read_package(str(tmp_path / "scored"), expected_digest=package.digest)
    assert again.outliers is not None
    assert package.outliers is not None
    np.testing.assert_array_equal(again.outliers.levels, package.outliers.levels)
    report = verify_package(str(tmp_path / "scored"))
    assert report.passed
    details = {check.name: check.detail for check in report.checks}
    assert details["outlier statistics"] == "ok"
    assert details["golden images"] == "4, described for this task"


def test_a_package_without_statistics_keeps_its_digest(folder: Path) -> None:
    manifest = digits_package(folder).manifest.model_dump(mode="json")
    assert "scores_outliers" not in manifest["task"]
    assert OUTLIERS_FILE not in manifest["files"]


def altered(statistics: OutlierStatistics, **arrays: Any) -> bytes:
    return replace(statistics, **arrays).to_bytes()


def as_float(values: Any) -> Any:
    return np.asarray(values, np.float32)


MUTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"mean": as_float([np.nan] * NUM_FEATURES)}, "finite"),
    "float64": ({"mean": np.zeros(NUM_FEATURES)}, "float32"),
    "fewer features": ({"mean": np.zeros(5, np.float32)}, "directions has the shape"),
    "no residual": ({"directions": np.eye(NUM_FEATURES, dtype=np.float32)}, "no residual"),
    "a negative weight": ({"weight": as_float([-1])}, "above 0"),
    "two weights": ({"weight": as_float([1, 1])}, "weight has the shape"),
    "no levels": ({"levels": as_float([])}, "ascending"),
    "levels out of order": ({"levels": as_float([2, 1])}, "ascending"),
    "many levels": ({"levels": np.zeros(MAX_LEVELS + 1, np.float32)}, "levels are"),
    "a scalar": ({"directions": as_float(1)}, "directions has the shape"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_invalid_statistics_are_refused(package: ModelPackage, tmp_path: Path, name: str) -> None:
    arrays, words = MUTATIONS[name]
    assert package.outliers is not None
    content = altered(package.outliers, **arrays)
    with pytest.raises(PackageError, match=words) as caught:
        parse_outliers(content, OUTLIERS_FILE)
    assert str(caught.value).startswith(f"{OUTLIERS_FILE} is refused: ")
    statistics = replace(package.outliers, **arrays)
    write_package(with_outliers(package, statistics, package.manifest.lineage), str(tmp_path / "x"))
    with pytest.raises(PackageError, match=words):
        read_package(str(tmp_path / "x"))
    assert not verify_package(str(tmp_path / "x")).passed


def test_features_that_are_not_numbers_are_unusual(package: ModelPackage) -> None:
    assert package.outliers is not None
    head = OutlierHead(torch.nn.Linear(NUM_FEATURES, 10), package.outliers, package.task.confidence)
    outputs = head(torch.full((2, NUM_FEATURES), torch.nan))
    assert outputs.shape == (2, 11)
    assert outputs[:, 10].tolist() == [1.0, 1.0]


def test_a_head_with_attributes_has_a_score() -> None:
    plain = package_with_attributes()
    mean = np.zeros(NUM_FEATURES, np.float32)
    levels = np.linspace(-30, 30, 100, dtype=np.float32)
    directions = np.eye(NUM_FEATURES, dtype=np.float32)[:, :4]
    statistics = OutlierStatistics(mean, directions, np.ones(1, np.float32), levels)
    package = with_outliers(plain, statistics, plain.manifest.lineage)
    known: list[dict[str, object]] = [{"age": 41, "site": "north"}, {"age": 70, "site": "south"}]
    predictor = Predictor(package, device="cpu", engine="eager", precision="float32")
    outcomes = predictor.predict(noise(2), known)
    found = [one.prediction.outlier_score for one in outcomes if one.prediction is not None]
    assert len(found) == 2
    assert all(score is not None and 0 < score < 1 for score in found)


def test_statistics_that_are_no_safetensors_are_refused() -> None:
    with pytest.raises(PackageError, match="is not a safetensors file"):
        parse_outliers(b"\x80\x04pickle", OUTLIERS_FILE)


def test_statistics_of_another_network_are_refused(package: ModelPackage) -> None:
    assert package.outliers is not None
    other = replace(
        package.outliers, mean=np.zeros(9, np.float32), directions=np.zeros((9, 2), np.float32)
    )
    changed = with_outliers(package, other, package.manifest.lineage)
    with pytest.raises(PackageError, match="are of 9 features, and the last layer of lenet5 gets"):
        Predictor(changed, device="cpu", engine="eager")


@pytest.mark.parametrize("listed", [True, False])
def test_the_task_and_the_files_agree(
    package: ModelPackage, folder: Path, tmp_path: Path, listed: bool
) -> None:
    plain = digits_package(folder)
    task = plain.task if listed else package.task
    files = package.files if listed else plain.files
    digests = (package if listed else plain).manifest.files
    fields = {name: getattr(package.manifest, name) for name in ModelManifest.model_fields}
    manifest = ModelManifest(**{**fields, "task": task, "files": digests})
    write_package(ModelPackage(manifest, MappingProxyType(dict(files))), str(tmp_path / "x"))
    with pytest.raises(PackageError, match="outlier score and lists"):
        read_package(str(tmp_path / "x"))


def test_results_have_the_score_only_if_there_is_one(package: ModelPackage, folder: Path) -> None:
    (prediction, *_) = predict(package, digits(folder)[:1])
    task, plain = package.task, digits_package(folder).task
    assert "outlier_score" in [field.name for field in task.result_fields()]
    assert "outlier_score" not in [field.name for field in plain.result_fields()]
    assert task.result_row(prediction, 3)["outlier_score"] == prediction.outlier_score
    members = task.response(prediction, top_k=3, threshold=None)
    assert members["outlier_score"] == prediction.outlier_score
    assert "outlier_score" not in plain.response(prediction, top_k=3, threshold=None)
    assert [spec.name for spec in plain.tensor_specs()] == ["label", "score", "probabilities"]
    names = [spec.name for spec in task.tensor_specs()]
    expected = scores([prediction])[0]
    tensors = task.tensors([prediction, None])
    assert [tensor.name for tensor in tensors] == names
    assert names[-1] == "outlier_score"
    np.testing.assert_allclose(np.asarray(tensors[-1].elements), [expected, np.nan], rtol=1e-6)


def test_a_quantized_version_keeps_the_score(
    registry: Registry, scored: OutliersSummary, package: ModelPackage, folder: Path
) -> None:
    spec = QuantizeSpec.make(
        {"model": scored.version.reference, "num_images": 64, "max_drop": 0.02}
    )
    summary = run_quantization(open_quantization(spec, registry.settings), SilentReporter())
    quantized = registry.load(summary.version)
    assert OUTLIERS_FILE not in quantized.files
    images = digits(folder)
    expected = scores(predict(package, images))
    found = scores(predict(quantized, images, engine="auto", precision="auto"))
    assert np.abs(found - expected).mean() < 0.05
    assert np.median(scores(predict(quantized, noise(), engine="auto", precision="auto"))) > 0.7


def test_an_export_drops_the_score(package: ModelPackage) -> None:
    images = torch.zeros((1, *CONTRACT.shape), dtype=torch.uint8)
    assert ExportedNetwork(package).eval()(images).shape == (1, 10)
    (output,) = onnx_graph(package).graph.output
    assert output.type.tensor_type.shape.dim[1].dim_value == 10


@pytest.mark.parametrize(
    "task",
    [Binary(labels=("even", "odd")), Multilabel(labels=("a", "b", "c"), thresholds=(0.5,) * 3)],
)
def test_other_classifiers_have_a_score(registry: Registry, folder: Path, task: Task) -> None:
    package = digits_package(folder, name=task.name, task=task)
    version = register_with_split(registry, package, digit_split(folder, task.labels))
    found = registry.load(score(registry, version.reference).version)
    (prediction, *_) = predict(found, noise(4))
    assert prediction.outlier_score is not None
    assert 0.0 <= prediction.outlier_score <= 1.0
    assert prediction.probabilities.shape == (len(task.labels),)


def test_a_regression_has_no_score(registry: Registry, folder: Path) -> None:
    package = digits_package(folder, name="values", task=Regression(mean=0.0, std=1.0))
    version = register_with_split(registry, package, digit_split(folder))
    with pytest.raises(InputError, match="A regression model has no outlier score"):
        score(registry, version.reference)


def test_statistics_of_named_images(registry: Registry, parent: ModelVersion, folder: Path) -> None:
    summary = score(registry, parent.reference, data=str(folder), num_images=200)
    assert 195 <= summary.fitted.num_train <= 200  # a few of the files are broken
    assert summary.fitted.num_validation > 32


def test_too_few_images_are_refused(
    registry: Registry, parent: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    for index, content in enumerate(noise(8)):
        (tmp_path / f"{index}.png").write_bytes(content)
    with pytest.raises(InputError, match=r"--data has 8 images, and .* needs at least 128"):
        score(registry, parent.reference, data=str(tmp_path))
    split = digit_split(folder)
    few = dataclasses.replace(split, validation=split.validation.take(range(31)))
    version = register_with_split(registry, digits_package(folder), few)
    with pytest.raises(InputError, match=r"keeps 31 validation images, and .* by --data"):
        score(registry, version.reference)


def test_the_command_registers_a_version(
    registry: Registry, parent: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(registry.settings.home))
    monkeypatch.setenv("COLUMNS", "300")
    number = len(registry.versions("digits")) + 1
    shown = CliRunner().invoke(models_app, ["outliers", parent.reference, "--alias", "watched"])
    assert shown.exit_code == 0, shown.output
    assert f"digits/{number} is registered as watched, with an outlier score: " in shown.output
    assert f"{NUM_TRAIN} training images, levels of {NUM_VALIDATION}" in shown.output
    printed = CliRunner().invoke(models_app, ["outliers", parent.reference, "--json"])
    summary = json.loads(printed.stdout)
    assert summary["model"] == f"digits/{number + 1}"
    assert summary["parent_digest"] == parent.digest
