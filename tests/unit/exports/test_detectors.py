"""Detectors as graphs: in OpenVINO, as exports and in int8, with the same objects everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagleray.compression.calibration import SampleImages
from eagleray.compression.quantization import quantize_graph
from eagleray.core.errors import InputError
from eagleray.data.labelled import LabelledImages
from eagleray.exports.compare import compare, tolerance_of
from eagleray.exports.job import open_export, run_export
from eagleray.exports.spec import ExportSpec
from eagleray.imaging.geometry import Frame
from eagleray.inference.predictor import Predictor
from eagleray.models.manifest import Lineage, Quantization
from eagleray.models.package import ModelPackage, write_package
from eagleray.models.quantized import create_quantized_package
from eagleray.registry.references import LoadedModel
from tests.support.detectors import detector_package
from tests.support.models import golden_png, settings_in
from tests.support.numerics import OPENVINO_NORMALISES
from tests.support.quantized import SilentReporter

pytestmark = pytest.mark.numerical

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


@cache
def package() -> ModelPackage:
    return detector_package([golden_png(seed) for seed in range(2)])


@cache
def eager_objects() -> Any:
    return Predictor(package(), engine="eager", precision="float32", device="cpu").forward(PIXELS)


@OPENVINO_NORMALISES
def test_openvino_finds_the_same_objects(tmp_path: Path) -> None:
    predictor = Predictor(package(), engine="openvino", precision="float32", cache_folder=tmp_path)
    outputs: Any = predictor.passes.run(torch.from_numpy(PIXELS[:1]))
    assert set(outputs) == {"boxes", "logits"}
    found = predictor.forward(PIXELS)
    assert (eager_objects()[:, :, 4] > 0).sum() > 100
    assert package().task.mean_difference(found, eager_objects()) < 1e-4
    assert predictor.check_golden().healthy


def loaded(model: ModelPackage) -> LoadedModel:
    return LoadedModel("found", model)


@OPENVINO_NORMALISES
def test_an_export_has_boxes_and_scores_and_an_example_that_finds_the_objects(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path)
    settings.make_home()
    write_package(package(), str(tmp_path / "model"))
    (tmp_path / "image.png").write_bytes(golden_png(5, side=50))
    spec = ExportSpec(model="found", output=str(tmp_path / "export"), format="openvino")
    facts = run_export(open_export(spec, loaded(package()), settings), SilentReporter())
    assert facts.comparison is not None
    assert facts.comparison.agreement == 1
    assert facts.comparison.mean_difference < 1e-4
    described = json.loads((tmp_path / "export" / "model.json").read_text())
    assert [one["name"] for one in described["outputs"]] == ["boxes", "scores"]
    assert "Non-maximum suppression is not part" in (tmp_path / "export/README.md").read_text()
    text = subprocess.run(
        [sys.executable, "-P", str(tmp_path / "export/predict.py"), str(tmp_path / "image.png")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path / "export")},
    ).stdout
    printed = [line.split("  ")[1:] for line in text.splitlines()]
    predictor = Predictor(package(), engine="eager", precision="float32", device="cpu")
    (outcome,) = predictor.predict([golden_png(5, side=50)])
    prediction: Any = outcome.prediction
    assert len(printed) == len(prediction.objects) > 5
    for (label, score, *edges), one in zip(printed, prediction.objects, strict=True):
        assert label == one.label
        assert float(score) == pytest.approx(one.score, abs=2e-4)
        box = [one.x, one.y, one.x + one.width, one.y + one.height]
        assert [float(edge) for edge in edges] == pytest.approx(box, abs=0.06)


def test_an_export_without_an_object_to_compare_is_refused_before_it_is_made(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path)
    settings.make_home()
    strict = package().task.model_copy(update={"min_score": 1.0})
    model = ModelPackage(
        package().manifest.model_copy(update={"task": strict}), dict(package().files)
    )
    spec = ExportSpec(model="found", output=str(tmp_path / "out" / "export"), format="openvino")
    fault = r"'found' finds no object in any of the 2 images .* finds some by --data\."
    with pytest.raises(InputError, match=fault):
        run_export(open_export(spec, loaded(model), settings), SilentReporter())
    assert not (tmp_path / "out").exists()


def test_formats_of_one_output_refuse_a_detector(tmp_path: Path) -> None:
    spec = ExportSpec(model="found", output=str(tmp_path / "export"), format="litert")
    fault = r"several outputs \(boxes, scores\), and LiteRT exports have one; export it to onnx or"
    with pytest.raises(InputError, match=fault):
        open_export(spec, loaded(package()), settings_in(tmp_path))


def test_a_comparison_is_of_objects_and_not_of_rows() -> None:
    task, expected = package().task, eager_objects()[:4]
    predictions = [task.postprocess(row, Frame(64, 64)) for row in expected]
    uris = [f"{number}.png" for number in range(4)]
    moved = expected.copy()
    moved[:, [0, 1]] = expected[:, [1, 0]]  # the same objects in another order
    other = [task.postprocess(row, Frame(64, 64)) for row in moved]
    tolerance = tolerance_of(package())
    same = compare(task, uris, (expected, predictions), (moved, other), tolerance)
    assert (same.faults, same.relative_difference) == ((), None)
    assert same.max_difference == pytest.approx(0, abs=1e-6)
    moved[:, :, :4] += 3
    wrong = compare(task, uris, (expected, predictions), (moved, other), tolerance)
    assert "on average where 0.004 is allowed" in " ".join(wrong.faults)


def sample(pixels: Any) -> SampleImages:
    count = len(pixels)
    uris = tuple(f"{number}.png" for number in range(count))
    images = LabelledImages(uris, ("",) * count, ("",) * count)
    return SampleImages(images, pixels, None, None, (Frame(64, 64),) * count, 0)


@OPENVINO_NORMALISES
def test_a_quantized_detector_keeps_its_boxes(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    found = quantize_graph(
        package(), sample(PIXELS[:8]), sample(PIXELS[8:]), max_drop=1.0, reporter=SilentReporter()
    )
    quantized = create_quantized_package(
        package(),
        found.content,
        quantization=Quantization(method="static", calibration_digest="0" * 64, num_images=8),
        lineage=Lineage.now(parent=package().digest),
        tolerance=0.1,
    )
    outputs: Any = Predictor(quantized, cache_folder=tmp_path).passes.run(torch.from_numpy(PIXELS))
    network = package().build_module()
    with torch.inference_mode():
        from eagleray.models.network import ImageNetwork

        expected: Any = ImageNetwork(network, package().contract)(torch.from_numpy(PIXELS))
    error = (outputs["boxes"] - expected["boxes"]).abs().mean()
    spread = (expected["boxes"] - expected["points"][..., [0, 1, 0, 1]]).abs().mean()
    assert found.num_layers > 20
    assert error < 0.1 * spread
