"""Graphs of packages: exported for any batch, and refused if they are hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eagleray.compression.nncf_backend import GraphRunner
from eagleray.core.errors import PackageError
from eagleray.inference.predictor import Predictor
from eagleray.models.graph import check_graph
from eagleray.models.graph_export import export_graph
from tests.support.models import small_package


@pytest.fixture(scope="module")
def content() -> bytes:
    return export_graph(small_package())


@pytest.mark.parametrize("batch", [1, 5])
def test_an_exported_graph_computes_what_the_network_does(content: bytes, batch: int) -> None:
    package = small_package()
    check_graph("model.onnx", content, package.manifest)
    shape = (batch, *package.contract.shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    logits = GraphRunner(content).run({"images": images}, ["logits"])["logits"]
    expected = Predictor(package, engine="eager", precision="float32").forward(images)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(exp / exp.sum(1, keepdims=True), expected, atol=1e-5)


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _foreign_domain(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def _foreign_node(model: Any) -> None:
    model.graph.node[0].domain = "com.evil"


def _loop(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.insert(0, helper.make_node("Loop", ["", ""], ["x"], body=body))


def _nested_graph(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.insert(0, helper.make_node("Relu", ["images"], ["x"], hidden=body))


def _function(model: Any) -> None:
    model.functions.add(name="f", domain="here")


def _other_input(model: Any) -> None:
    model.graph.input[0].name = "pictures"


def _float_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _other_size(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64


def _more_outputs(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def _memory_bomb(model: Any) -> None:
    """Expand a number to 16 terabytes of float32 in a graph of a few bytes."""
    shape = numpy_helper.from_array(np.array([2**21, 2**21], np.int64), "bomb_shape")
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "bomb_one")
    model.graph.initializer.extend([shape, one])
    model.graph.node.insert(0, helper.make_node("Expand", ["bomb_one", "bomb_shape"], ["bomb"]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_external, "are outside of the file"),
        (_foreign_domain, "operators of 'com.evil'"),
        (_foreign_node, "operators of 'com.evil'"),
        (_loop, r"control flow \(Loop\)"),
        (_nested_graph, "contains another graph"),
        (_function, "functions or training information"),
        (_other_input, "its inputs are pictures, not images"),
        (_float_input, "input 'images' is not of the shape and type"),
        (_other_size, "input 'images' is not of the shape and type"),
        (_more_outputs, "output 'logits' is not of the shape and type"),
        (_memory_bomb, "'bomb' has 4,398,046,511,104 numbers"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_hostile_graph_is_refused_before_anything_runs_it(
    content: bytes, change: Callable[[Any], None], expected: str
) -> None:
    model = onnx.ModelProto.FromString(content)
    change(model)
    with pytest.raises(PackageError, match=expected):
        check_graph("model.onnx", model.SerializeToString(), small_package().manifest)


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda _: b"", lambda _: b"\xff"])
def test_a_damaged_graph_is_refused(content: bytes, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(PackageError, match=r"model\.onnx is refused"):
        check_graph("model.onnx", damage(content), small_package().manifest)
