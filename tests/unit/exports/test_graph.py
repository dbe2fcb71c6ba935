"""The exported network: uint8 images in, activated outputs out, whatever the task."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch

from eagleray.exports.graph import ExportedNetwork, export_program, onnx_graph
from eagleray.inference.openvino import import_openvino
from eagleray.models.graph_export import export_graph
from eagleray.models.manifest import Quantization
from eagleray.models.network import ImageNetwork
from eagleray.models.package import GRAPH_FILE, ModelPackage
from eagleray.tasks import Binary, Multiclass, Multilabel, Regression, Task
from tests.support.models import small_package

TASKS = (
    Multiclass(labels=("zero", "one", "two"), temperature=2.5),
    Binary(labels=("good", "defect"), temperature=0.7),
    Multilabel(labels=("red", "round"), thresholds=(0.3, 0.5)),
    Regression(mean=5.0, std=20.0),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)


def expected_of(package: ModelPackage) -> np.ndarray:
    network = ImageNetwork(package.build_module(), package.contract).eval()
    with torch.inference_mode():
        return package.task.activate(network(torch.from_numpy(IMAGES))).numpy()


def run_graph(package: ModelPackage) -> dict[str, np.ndarray]:
    core = import_openvino().Core()
    graph = core.read_model(onnx_graph(package).SerializeToString())
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    results = core.compile_model(graph, "CPU", options)({"images": IMAGES})
    return {port.any_name: array for port, array in results.items()}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_normalisation_activation_and_temperature_are_in_the_graph(task: Task) -> None:
    package = small_package(task=task)
    (name, outputs), *others = run_graph(package).items()
    assert not others
    assert name == ("probabilities" if task.labels else "values")
    assert outputs == pytest.approx(expected_of(package), abs=1e-5 * task.unit)


def test_a_quantized_graph_is_kept_and_activated() -> None:
    package = small_package(task=TASKS[0])
    graph = export_graph(package)
    manifest = package.manifest.model_copy(
        update={
            "quantization": Quantization(method="static", calibration_digest="0" * 64, num_images=1)
        }
    )
    quantized = ModelPackage(manifest, MappingProxyType({GRAPH_FILE: graph}))
    outputs = run_graph(quantized)["probabilities"]
    assert outputs == pytest.approx(expected_of(package), abs=1e-5)


def test_a_planar_network_predicts_the_same() -> None:
    package = small_package(task=TASKS[0])
    planar = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        outputs = ExportedNetwork(package, planar=True).eval()(planar)
        program = export_program(package, planar=True).module()
        assert torch.allclose(program(planar[:1]), outputs[:1], atol=1e-6)
    assert outputs.numpy() == pytest.approx(expected_of(package), abs=1e-6)
