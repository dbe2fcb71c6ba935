"""A version is quantized: from its training images to a tested version that can be promoted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from eagleray.compression.job import QuantizeSummary, run_quantization
from eagleray.compression.prepare import open_quantization
from eagleray.compression.spec import QuantizeSpec
from eagleray.core.errors import InputError, PackageError
from eagleray.evaluation.kpi import parse_kpis
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.models.manifest import Import
from eagleray.models.package import ModelPackage, read_package, write_package
from eagleray.registry.comparison import ComparedVersion
from eagleray.registry.promotion import promote
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.tasks import Binary, Multilabel, Regression, Task
from tests.support.models import registry_in
from tests.support.quantized import (
    NUM_TEST,
    NUM_TRAIN,
    SilentReporter,
    digit_split,
    digits_package,
    register_with_split,
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_in(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


def quantize(registry: Registry, reference: str, **fields: Any) -> QuantizeSummary:
    spec = QuantizeSpec.make({"model": reference, "num_images": 64, **fields})
    return run_quantization(open_quantization(spec, registry.settings), SilentReporter())


@pytest.fixture(scope="module")
def parent(registry: Registry, folder: Path) -> ModelVersion:
    return register_with_split(registry, digits_package(folder), digit_split(folder))


@pytest.fixture(scope="module")
def quantized(registry: Registry, parent: ModelVersion) -> QuantizeSummary:
    return quantize(registry, parent.reference, alias="edge", max_drop=0.0157)


def test_the_new_version_names_its_parent_and_its_calibration(
    registry: Registry, parent: ModelVersion, quantized: QuantizeSummary
) -> None:
    version, manifest = quantized.version, quantized.package.manifest
    assert (version.reference, version.aliases) == ("digits/2", ("edge",))
    assert version.precision == "int8"
    before = registry.manifest(parent)
    assert manifest.lineage.parent == parent.digest
    assert manifest.lineage.test_digest == before.lineage.test_digest
    assert (manifest.task, manifest.contract) == (before.task, before.contract)
    assert manifest.quantization is not None
    assert manifest.quantization.num_images == 64
    assert quantized.warnings == ()
    run = registry.client.get_run(version.run_id)
    assert run.data.tags["eagleray.kind"] == "quantize"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.params["num_images"] == "64"
    assert version.run_id is not None
    assert "split.parquet" in registry.artifacts.names(version.run_id)
    told = json.loads(json.dumps(quantized.as_json()))
    assert told["parent"] == "digits/1"
    assert (told["held_out"]["images"], told["held_out"]["one_image"]) == (64, 1 / 64)
    compared = ComparedVersion.read(registry, version)
    assert compared.weights_bytes == told["bytes"]


def test_it_is_tested_on_the_images_of_its_parent_and_promoted_by_what_it_loses(
    registry: Registry, parent: ModelVersion, quantized: QuantizeSummary, folder: Path
) -> None:
    digest = digit_split(folder).test.digest
    records = [registry.evaluations(one)[0] for one in (parent, quantized.version)]
    assert [record.data_digest for record in records] == [digest, digest]
    assert [record.num_images for record in records] == [NUM_TEST, NUM_TEST]
    before, after = (record.metrics["accuracy"] for record in records)
    assert before > 0.8
    assert abs(before - after) <= 0.02
    assert quantized.package.manifest.metrics["test_accuracy"] == after
    assert "int8" in Path(quantized.page).read_text()
    kpis = parse_kpis(f"accuracy >= parent - {before - after + 0.001:.4f}", where="kpi.txt")
    promotion = promote(registry, "digits", 2, alias="production", kpis=kpis)
    assert promotion.kpi_results[0].passed


def test_the_package_is_read_back_verified_and_predicts_like_its_parent(
    registry: Registry, parent: ModelVersion, quantized: QuantizeSummary, tmp_path: Path
) -> None:
    write_package(quantized.package, str(tmp_path / "package"))
    report = verify_package(str(tmp_path / "package"))
    assert report.passed, report.faults
    package = read_package(str(tmp_path / "package"))
    assert package.digest == quantized.version.digest
    assert 0.01 <= package.golden.tolerance <= 0.1
    images = [package.files[one.file] for one in package.golden.images]
    own, before = (Predictor(one).predict(images) for one in (package, registry.load(parent)))
    for ours, theirs, golden in zip(own, before, package.golden.images, strict=True):
        assert ours.prediction is not None
        assert theirs.prediction is not None
        assert ours.prediction.label == theirs.prediction.label
        np.testing.assert_allclose(
            package.task.outputs_of(ours.prediction), golden.outputs, atol=1e-4
        )
    assert "int8" in Predictor(package).engine


def test_it_runs_on_the_cpu_of_a_machine_with_a_gpu(
    quantized: QuantizeSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert Predictor(quantized.package).plan.device == "cpu"


def test_it_is_neither_trained_from_nor_quantized_again(
    registry: Registry, quantized: QuantizeSummary
) -> None:
    with pytest.raises(PackageError, match="quantized: it has a graph and no weights"):
        quantized.package.build_module()
    with pytest.raises(InputError, match="digits/2 is quantized already"):
        quantize(registry, "digits/2")


def test_an_imported_model_is_refused_before_the_data_are_looked_at(
    registry: Registry, quantized: QuantizeSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = quantized.package.manifest.model_copy(
        update={
            "quantization": None,
            "imported": Import(file_digest="0" * 64, scores="logits", num_parameters=1),
        }
    )
    monkeypatch.setattr(Registry, "manifest", lambda self, version: manifest)
    with pytest.raises(InputError, match=r"digits/1 is imported, .* import the result"):
        quantize(registry, "digits/1", data="nowhere")


def test_other_images_calibrate_without_the_test_images(
    registry: Registry, parent: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    data = digit_split(folder).test.uris[:50]
    for uri in data:
        shutil.copy(uri, tmp_path)
    table = tmp_path / "images.csv"
    local = sorted(str(path) for path in tmp_path.glob("*.png"))
    table.write_text("path\n" + "\n".join([*local, *data]))
    job = open_quantization(
        QuantizeSpec(model=parent.reference, data=str(table)), registry.settings
    )
    assert len(job.calibration) == 50
    assert "50 of the calibration images are test images" in " ".join(job.notes)


TASKS: list[tuple[Task, list[str]]] = [
    (Binary(labels=("even", "odd")), ["even", "odd"]),
    (
        Multilabel(labels=("big", "even", "odd"), thresholds=(0.5, 0.5, 0.5)),
        ["even|big", "odd", "even"],
    ),
    (Regression(mean=4.5, std=3.0), ["1", "4", "9.5"]),
]


@pytest.mark.parametrize(("task", "labels"), TASKS, ids=lambda value: getattr(value, "name", ""))
def test_every_task_is_quantized(
    registry: Registry, folder: Path, task: Task, labels: list[str]
) -> None:
    package = digits_package(folder, task.name, task)
    version = register_with_split(registry, package, digit_split(folder, labels))
    summary = quantize(registry, version.reference, max_drop=1.0)
    assert summary.evaluation is not None
    assert summary.evaluation.metrics.keys() == summary.parent_metrics.keys()
    assert (summary.graph.image_share is None) == (task.name != "binary")
    unit = task.unit
    assert 0.01 * unit <= summary.package.golden.tolerance <= 0.1 * unit
    assert Predictor(registry.load(summary.version)).require_healthy().num_images == 4


def test_a_version_without_a_table_of_images_needs_data(registry: Registry, folder: Path) -> None:
    package = digits_package(folder, "imported")
    version = register_with_split(registry, package, None)
    with pytest.raises(InputError, match=r"keeps no table of its training images.*--data"):
        quantize(registry, version.reference)
    summary = quantize(registry, version.reference, data=str(folder / "images"))
    assert summary.evaluation is None
    assert summary.graph.score == "share of predictions like the float model's"
    assert "eagleray evaluate imported/2 DATA" in " ".join(summary.warnings)
    assert summary.graph.num_held_out == 64
    assert summary.warnings[0] == (
        "--max-drop 0.005 is less than one of the 64 held-out images, so a single lost one keeps "
        "layers in float32; allow 0.0157 or more."
    )


def test_too_few_readable_images_are_refused_and_nothing_is_registered(
    registry: Registry, parent: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    for uri in digit_split(folder).train.uris[:31]:
        shutil.copy(uri, tmp_path)
    for number in range(20):
        (tmp_path / f"broken-{number}.png").write_bytes(b"no image")
    before = len(registry.versions("digits"))
    with pytest.raises(InputError, match=r"has 31 images to calibrate on \(20 cannot be read\)"):
        quantize(registry, parent.reference, data=str(tmp_path))
    assert len(registry.versions("digits")) == before
    with pytest.raises(InputError, match="num_images"):
        QuantizeSpec.make({"model": "digits/1", "num_images": 31})
    with pytest.raises(InputError, match="is not a registered version; write NAME@ALIAS or"):
        quantize(registry, "random:resnet18")
    with pytest.raises(InputError, match="Which version of 'digits'"):
        quantize(registry, "digits")


class TwoOutputs(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"boxes": images.mean((2, 3)), "scores": images.mean((1, 2, 3))}


def test_a_network_with_several_outputs_is_refused_before_an_image_is_read(
    registry: Registry, parent: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelPackage, "build_module", lambda _: TwoOutputs())
    with pytest.raises(InputError, match=r"'digits' has several outputs \(boxes, scores\), and"):
        open_quantization(QuantizeSpec(model=parent.reference), registry.settings)


def test_calibration_takes_training_images_in_an_order_of_their_own(
    registry: Registry, parent: ModelVersion, folder: Path
) -> None:
    job = open_quantization(QuantizeSpec(model=parent.reference), registry.settings)
    train = digit_split(folder).train
    assert set(job.calibration.uris) == set(train.uris)
    assert len(job.calibration) == NUM_TRAIN
    assert job.calibration.uris != train.uris
    assert job.held_out_labelled
    assert set(job.held_out.uris) == set(digit_split(folder).validation.uris)
