"""Rewrites softmaxes of three dimensions, on whose attention OpenVINO 2026 fails.

It joins the operators of an attention, and says that its "ReduceDecomposition supports only Reduce
by last dimension". With a dimension more, the softmax is the same and is not joined.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eagleray.models.graph import parse_foreign_graph

__all__ = ["widen_softmaxes"]

_NUM_DIMENSIONS = 3
_AXES_ARE_INPUTS = 13  # of Unsqueeze, from this operator set on
_PREFIX = "softmax_wide"


def widen_softmaxes(content: bytes) -> bytes:
    """Return an ONNX file whose softmaxes of three dimensions have four.

    A file of an operator set before 13 is returned as it is.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = parse_foreign_graph(content)
    if max((one.version for one in model.opset_import), default=1) < _AXES_ARE_INPUTS:
        return content
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in inferred.graph.value_info}
    nodes: list[Any] = []
    for index, node in enumerate(model.graph.node):
        axis = next((one.i for one in node.attribute if one.name == "axis"), -1)
        is_last = axis in (-1, _NUM_DIMENSIONS - 1)
        if node.op_type != "Softmax" or ranks.get(node.input[0]) != _NUM_DIMENSIONS or not is_last:
            nodes.append(node)
            continue
        wide, result = (f"{_PREFIX}_{index}_{name}" for name in ("input", "output"))
        nodes += [
            helper.make_node("Unsqueeze", [node.input[0], _PREFIX], [wide]),
            helper.make_node("Softmax", [wide], [result], axis=-1),
            helper.make_node("Squeeze", [result, _PREFIX], list(node.output)),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), _PREFIX))
    changed: bytes = model.SerializeToString()
    return changed
