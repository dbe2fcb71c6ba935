"""Networks of pixels as graphs: in OpenVINO, as exports and in int8, with the same masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray.compression.calibration import decode_sample
from eagleray.compression.quantization import QuantizedGraph, quantize_graph
from eagleray.core.errors import InputError, JobFailedError
from eagleray.data.labelled import read_labelled
from eagleray.exports.compare import MIN_SIMILARITY, Comparison
from eagleray.exports.files import ExportFacts
from eagleray.exports.job import open_export, run_export
from eagleray.exports.spec import ExportSpec
from eagleray.inference.predictor import Predictor
from eagleray.models.manifest import Lineage, Quantization
from eagleray.models.package import ModelPackage, write_package
from eagleray.models.quantized import create_quantized_package, fit_tolerance
from eagleray.registry.references import LoadedModel
from eagleray.tasks.segmentation.class_maps import decode_mask
from eagleray.tasks.segmentation.similarity import dice_of_maps
from eagleray.training.registration.packaging import finish_model
from tests.support.models import settings_in
from tests.support.numerics import OPENVINO_ENLARGES
from tests.support.quantized import SilentReporter
from tests.support.segmented import disk_spec, nucleus_spec, write_disks, write_nuclei
from tests.support.training import plan_for, train_in_process

pytestmark = [pytest.mark.numerical, OPENVINO_ENLARGES]

ALL_IMAGES = 36


@pytest.fixture(autouse=True, scope="module")
def _allowed() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EAGLERAY_EXTENSIONS", "tests.support.segmented")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # conversions import it as well
        yield


def learned(spec: Any, home: Path) -> ModelPackage:
    plan, _ = plan_for(spec, home)
    train_in_process(spec, home, plan=plan)
    finished = finish_model(plan, plan.module, cache_folder=home / "cache", mlflow_run=None)
    return finished.package


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory, _allowed: Any) -> Path:
    return write_disks(tmp_path_factory.mktemp("disks") / "data", ALL_IMAGES)


@pytest.fixture(scope="module")
def semantic(disks: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return learned(disk_spec(disks, epochs=10), tmp_path_factory.mktemp("semantic"))


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory, _allowed: Any) -> Path:
    return write_nuclei(tmp_path_factory.mktemp("nuclei") / "data", ALL_IMAGES)


@pytest.fixture(scope="module")
def instance(nuclei: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return learned(nucleus_spec(nuclei, epochs=24), tmp_path_factory.mktemp("instance"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, _allowed: Any) -> Path:
    return write_nuclei(tmp_path_factory.mktemp("scenes") / "data", ALL_IMAGES, floor=True)


@pytest.fixture(scope="module")
def panoptic(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    spec = nucleus_spec(scenes, task="panoptic", epochs=24)
    return learned(spec, tmp_path_factory.mktemp("panoptic"))


def export(model: ModelPackage, tmp_path: Path, data: Path, **changes: Any) -> ExportFacts:
    settings = settings_in(tmp_path)
    settings.make_home()
    write_package(model, str(tmp_path / "model"))
    fields = {"format": "openvino", "data": str(data.parent), "max_images": 12, **changes}
    spec = ExportSpec(model="found", output=str(tmp_path / "export"), **fields)
    return run_export(open_export(spec, LoadedModel("found", model), settings), SilentReporter())


def start_example(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(tmp_path / "export/predict.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "export")},
    )


def run_example(tmp_path: Path, image: Path) -> list[list[str]]:
    ended = start_example(tmp_path, str(image))
    assert ended.returncode == 0, ended.stderr
    return [line.split("  ") for line in ended.stdout.splitlines()]


def gray(path: Path) -> Any:
    return np.asarray(Image.open(path))


def predicted(model: ModelPackage, image: Path, **changes: Any) -> Any:
    fields = {"engine": "eager", "precision": "float32", "device": "cpu", **changes}
    (outcome,) = Predictor(model, **fields).predict([image.read_bytes()])
    return outcome.prediction


def test_a_semantic_export_has_probabilities_and_an_example_with_the_same_mask(
    semantic: ModelPackage, disks: Path, tmp_path: Path
) -> None:
    facts = export(semantic, tmp_path, disks)
    assert facts.comparison is not None
    assert len(facts.comparison.images) > 12
    assert facts.comparison.similarity == pytest.approx(1, abs=1e-3)
    assert facts.comparison.max_difference < 1e-4
    described = json.loads((tmp_path / "export/model.json").read_text())["output"]
    assert described["name"] == "probabilities"
    assert described["shape"] == [3, 32, 32]
    assert "mean Dice coefficient | 1.0000" in (tmp_path / "export/README.md").read_text()
    image = disks.parent / "03.png"
    ((_, name, *shares),) = run_example(tmp_path, image)
    prediction = predicted(semantic, image)
    expected = decode_mask(prediction.mask)
    found = gray(tmp_path / name)
    assert found.shape == expected.shape == (32, 40)
    assert dice_of_maps(found, expected) > 0.999
    assert tuple(share.split()[0] for share in shares) == prediction.labels
    assert "bright" in prediction.labels
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((32, 40), 9000, np.uint16)).save(deep)
    for words, said in (
        ([], "Name image files"),
        (["--help"], "Name image files"),
        ([str(tmp_path / "none.png")], "none.png cannot be read"),
        ([str(deep)], "deep.png has more than 8 bits per channel"),
    ):
        ended = start_example(tmp_path, *words)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith(said) or said in ended.stderr.splitlines()[0]
        assert "Traceback" not in ended.stderr


def test_an_instance_export_has_maps_and_an_example_that_groups_them(
    instance: ModelPackage, nuclei: Path, tmp_path: Path
) -> None:
    facts = export(instance, tmp_path, nuclei)
    assert facts.comparison is not None
    assert facts.comparison.similarity == pytest.approx(1, abs=1e-3)
    described = json.loads((tmp_path / "export/model.json").read_text())["outputs"]
    assert [(one["name"], one["shape"][0]) for one in described] == [
        ("probabilities", 2),
        ("centers", 1),
        ("offsets", 2),
    ]
    assert "Grouping pixels into objects is not" in (tmp_path / "export/README.md").read_text()
    image = nuclei.parent / "02.png"
    printed = run_example(tmp_path, image)
    prediction = predicted(instance, image)
    assert len(printed) == len(prediction.objects) == 3
    for (_, label, score, *edges), one in zip(printed, prediction.objects, strict=True):
        assert label == "nucleus"
        assert float(score) == pytest.approx(one.score, abs=1e-3)
        box = [one.x, one.y, one.x + one.width, one.y + one.height]
        assert [float(edge) for edge in edges] == pytest.approx(box, abs=1)
    assert gray(tmp_path / "02.objects.png").max() == 3


@pytest.mark.long
def test_a_panoptic_export_has_an_example_with_the_same_segments(
    panoptic: ModelPackage, scenes: Path, tmp_path: Path
) -> None:
    facts = export(panoptic, tmp_path, scenes)
    assert facts.comparison is not None
    assert facts.comparison.similarity_name == "panoptic quality"
    assert facts.comparison.similarity == pytest.approx(1, abs=1e-3)
    described = json.loads((tmp_path / "export/model.json").read_text())
    assert [(one["name"], one["shape"][0]) for one in described["outputs"]] == [
        ("probabilities", 3),
        ("centers", 1),
        ("offsets", 2),
    ]
    image = scenes.parent / "02.png"
    printed = run_example(tmp_path, image)
    prediction = predicted(panoptic, image)
    things = [one for one in prediction.segments if one.label == "nucleus"]
    assert len(things) == 3
    assert [one.label for one in prediction.segments] == ["nucleus"] * 3 + ["floor"]
    objects = [words for words in printed if len(words) > 2 and words[1] == "nucleus"]
    for (_, _, score, *edges), one in zip(objects, things, strict=True):
        assert float(score) == pytest.approx(one.score, abs=1e-3)
        box = [one.x, one.y, one.x + one.width, one.y + one.height]
        assert [float(edge) for edge in edges] == pytest.approx(box, abs=1)
    assert gray(tmp_path / "02.objects.png").max() == 3


def test_an_export_with_other_masks_is_refused_with_the_worst_image(
    semantic: ModelPackage, disks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = np.load

    def moved(file: Any, **words: Any) -> Any:
        outputs = load(file, **words)
        return np.roll(outputs, 6, axis=3) if outputs.ndim == 4 else outputs

    monkeypatch.setattr(np, "load", moved)
    with pytest.raises(JobFailedError, match=r"has a mean Dice coefficient of 0\.\d+ with the"):
        export(semantic, tmp_path, disks)
    assert not (tmp_path / "export").exists()


def test_formats_of_one_output_refuse_maps_of_objects(
    instance: ModelPackage, tmp_path: Path
) -> None:
    spec = ExportSpec(model="found", output=str(tmp_path / "export"), format="litert")
    with pytest.raises(InputError, match=r"several outputs \(probabilities, centers, offsets\), "):
        open_export(spec, LoadedModel("found", instance), settings_in(tmp_path))


def quantize(model: ModelPackage, data: Path, *, labelled: bool) -> QuantizedGraph:
    pytest.importorskip("nncf")
    images = read_labelled(str(data))
    calibration = decode_sample(model, images.take(range(24)), 24, labelled=False)
    held_out = decode_sample(model, images.take(range(24, ALL_IMAGES)), 12, labelled=labelled)
    return quantize_graph(model, calibration, held_out, max_drop=0.02, reporter=SilentReporter())


def quantized_package(model: ModelPackage, found: QuantizedGraph) -> ModelPackage:
    return create_quantized_package(
        model,
        found.content,
        quantization=Quantization(method="static", calibration_digest="0" * 64, num_images=24),
        lineage=Lineage.now(parent=model.digest),
        tolerance=fit_tolerance(model.task, found.max_difference),
    )


def mean_similarity(one: ModelPackage, other: ModelPackage, data: Path, cache: Path) -> float:
    files = sorted(data.parent.glob("*.png"))[24:]
    sides = [
        Predictor(model, device="cpu", cache_folder=cache).predict(
            [one.read_bytes() for one in files]
        )
        for model in (one, other)
    ]
    pairs = zip(*sides, strict=True)
    found = [one.task.similarity(a.prediction, b.prediction) for a, b in pairs]
    return float(np.mean(found))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_quantized_semantic_model_keeps_its_masks(
    semantic: ModelPackage, disks: Path, tmp_path: Path, labelled: bool
) -> None:
    found = quantize(semantic, disks, labelled=labelled)
    name = "mean_iou" if labelled else "Dice coefficient with the float model's predictions"
    assert (found.score, found.image_share) == (name, None)
    assert found.drop <= 0.02
    assert 0 < found.max_difference < 0.1
    quantized = quantized_package(semantic, found)
    assert mean_similarity(semantic, quantized, disks, tmp_path) > 0.97


@pytest.mark.long
def test_a_quantized_instance_model_keeps_its_objects_and_is_exported(
    instance: ModelPackage, nuclei: Path, tmp_path: Path
) -> None:
    found = quantize(instance, nuclei, labelled=True)
    assert found.score == "map"
    assert found.num_layers > 8
    quantized = quantized_package(instance, found)
    assert mean_similarity(instance, quantized, nuclei, tmp_path) > 0.9
    facts = export(quantized, tmp_path, nuclei)
    compared: Comparison | None = facts.comparison
    assert compared is not None
    assert compared.similarity is not None
    assert compared.similarity > MIN_SIMILARITY


@pytest.mark.long
def test_a_quantized_panoptic_model_keeps_its_segments_and_is_exported(
    panoptic: ModelPackage, scenes: Path, tmp_path: Path
) -> None:
    found = quantize(panoptic, scenes, labelled=True)
    assert found.score == "pq"
    assert found.drop <= 0.02
    assert found.num_layers > 8
    quantized = quantized_package(panoptic, found)
    assert mean_similarity(panoptic, quantized, scenes, tmp_path) > 0.9
    facts = export(quantized, tmp_path, scenes)
    assert facts.comparison is not None
    assert facts.comparison.similarity is not None
    assert facts.comparison.similarity > MIN_SIMILARITY
