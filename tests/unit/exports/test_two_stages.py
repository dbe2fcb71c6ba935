"""A detector with two stages finds the same objects in any batch, in OpenVINO and in int8."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagleray.compression.calibration import SampleImages
from eagleray.compression.quantization import quantize_graph
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import named_contract
from eagleray.imaging.geometry import Frame
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.manifest import Lineage, Quantization
from eagleray.models.package import ModelPackage, create_package
from eagleray.models.quantized import create_quantized_package
from eagleray.tasks import Detection
from tests.support.models import LINEAGE, golden_png
from tests.support.numerics import OPENVINO_NORMALISES
from tests.support.quantized import SilentReporter

pytestmark = pytest.mark.numerical

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


@cache
def package() -> ModelPackage:
    """Make a tiny detector with random weights, whose objects are many."""
    architecture = Architecture(name="fasterrcnn/resnet20", num_outputs=2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module: Any = build(architecture).eval()
        module.head.labels.weight.normal_(std=0.5)
        module.head.deltas.weight.normal_(std=0.02)
    return create_package(
        name="found",
        task=Detection(labels=("cell", "crack")),
        architecture=architecture,
        contract=named_contract("letterbox", size=64),
        module=module,
        lineage=LINEAGE,
        golden_images=[golden_png(seed) for seed in range(2)],
    )


def predictor(engine: str, folder: Path) -> Predictor:
    return Predictor(
        package(), engine=engine, precision="float32", device="cpu", cache_folder=folder
    )


@OPENVINO_NORMALISES
def test_batches_and_openvino_find_the_objects_of_single_images(tmp_path: Path) -> None:
    eager = predictor("eager", tmp_path)
    single = np.concatenate([eager.forward(PIXELS[place : place + 1]) for place in range(6)])
    assert (single[:, :, 4] > 0).sum() > 100
    other = predictor("openvino", tmp_path)
    for found in (eager.forward(PIXELS), other.forward(PIXELS), other.forward(PIXELS[:4])):
        assert package().task.mean_difference(found, single[: len(found)]) < 1e-4
    for one in (eager, other):
        assert one.check_golden().healthy


@pytest.mark.long
@OPENVINO_NORMALISES
def test_a_quantized_detector_keeps_its_objects(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    uris = tuple(f"{number}.png" for number in range(3))
    images = LabelledImages(uris, ("",) * 3, ("",) * 3)
    samples = [
        SampleImages(images, pixels, None, None, (Frame(64, 64),) * 3, 0)
        for pixels in (PIXELS[:3], PIXELS[3:])
    ]
    found = quantize_graph(package(), *samples, max_drop=1.0, reporter=SilentReporter())
    quantized = create_quantized_package(
        package(),
        found.content,
        quantization=Quantization(method="static", calibration_digest="0" * 64, num_images=3),
        lineage=Lineage.now(parent=package().digest),
        tolerance=0.1,
    )
    outputs = Predictor(quantized, cache_folder=tmp_path).forward(PIXELS)
    expected = predictor("eager", tmp_path).forward(PIXELS)
    assert found.num_layers > 20
    # The objects of random weights are doubtful, and rounding exchanges them; two sets of
    # unrelated objects differ by half.
    assert package().task.mean_difference(outputs, expected) < 0.2
