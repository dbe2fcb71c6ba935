"""Quantizing a network: what changes, and how layers are restored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from eagleray.compression.calibration import SampleImages, decode_sample, stratified_order
from eagleray.compression.layers import quantized_layers, restore_layers
from eagleray.compression.nncf_backend import GraphRunner
from eagleray.compression.quantization import QuantizedGraph, quantize_graph
from eagleray.models.graph_export import export_graph
from eagleray.models.package import ModelPackage
from tests.support.quantized import SilentReporter, digit_split, digits_package

LAYERS = 5  # with weights, of a LeNet-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def package(folder: Path) -> ModelPackage:
    return digits_package(folder)


@pytest.fixture(scope="module")
def samples(folder: Path, package: ModelPackage) -> tuple[SampleImages, SampleImages]:
    split = digit_split(folder)
    return (
        decode_sample(package, split.train, 64, labelled=False),
        decode_sample(package, split.validation, 100, labelled=True),
    )


def quantize(
    package: ModelPackage, samples: tuple[SampleImages, SampleImages], max_drop: float
) -> QuantizedGraph:
    return quantize_graph(package, *samples, max_drop=max_drop, reporter=SilentReporter())


@pytest.fixture(scope="module")
def static(package: ModelPackage, samples: tuple[SampleImages, SampleImages]) -> QuantizedGraph:
    return quantize(package, samples, 1.0)


def logits(content: bytes, images: SampleImages) -> np.ndarray:
    return GraphRunner(content).run(images.inputs(), ["logits"])["logits"]


def test_weights_become_int8_and_predictions_stay(
    package: ModelPackage, samples: tuple[SampleImages, SampleImages], static: QuantizedGraph
) -> None:
    graph = onnx.ModelProto.FromString(static.content).graph
    held = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert sum(onnx.numpy_helper.to_array(one).ndim > 1 for one in held) == LAYERS
    assert (static.num_layers, static.float_layers) == (LAYERS, ())
    assert static.score == "accuracy"
    assert abs(static.drop) <= 0.02
    own, before = (logits(c, samples[1]) for c in (static.content, export_graph(package)))
    assert (own.argmax(1) == before.argmax(1)).mean() >= 0.97
    assert 0 < static.max_difference < 0.5


def test_weights_use_half_of_the_range_so_that_no_cpu_overflows(static: QuantizedGraph) -> None:
    graph = onnx.ModelProto.FromString(static.content).graph
    arrays = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
    weights = [one for one in arrays if one.dtype == np.int8 and one.ndim > 1]
    assert max(np.abs(one.astype(int)).max() for one in weights) == 64


def test_restoring_all_layers_gives_the_float_network(
    package: ModelPackage, samples: tuple[SampleImages, SampleImages], static: QuantizedGraph
) -> None:
    content = export_graph(package)
    original, quantized = map(onnx.ModelProto.FromString, (content, static.content))
    layers = quantized_layers(quantized, original)
    assert len(set(layers.values())) == LAYERS
    before = logits(content, samples[1])
    errors = []
    for count in (0, 2, LAYERS):
        restored = restore_layers(quantized, original, list(layers)[:count])
        errors.append(np.abs(logits(restored.SerializeToString(), samples[1]) - before).max())
    # Inputs of layers without weights, such as pooling, stay in int8.
    assert errors[2] < errors[1] < errors[0]
    full = restore_layers(quantized, original, list(layers))
    assert quantized_layers(full, original) == {}


def test_layers_that_lose_most_are_kept_in_float_until_the_loss_is_small_enough(
    package: ModelPackage, samples: tuple[SampleImages, SampleImages], static: QuantizedGraph
) -> None:
    # An impossible limit: what is tried ends at a quarter of the layers, and the best is kept.
    tried = quantize(package, samples, -1.0)
    assert tried.static_drop == static.drop
    assert tried.drop <= static.drop
    assert len(tried.float_layers) <= 1
    if tried.float_layers:
        assert tried.drop < static.drop


def test_every_beginning_of_a_sample_has_as_many_of_each_label() -> None:
    labels = ["common"] * 90 + ["rare"] * 10
    order = stratified_order(labels)
    assert sorted(order) == list(range(100))
    assert sum(labels[row] == "rare" for row in order[:20]) == 10
    assert order == stratified_order(labels)
    assert order != stratified_order(labels, seed=1)
