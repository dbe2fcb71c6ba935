"""Adds operators to an ONNX graph, each named after its result.

    operators = Operators(model)
    double = operators.add("Mul", name, operators.constant(np.float32(2)))
    del operators.graph.node[:]; ...

Operators that changed between operator sets are written for the set that the file uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Operators"]

_AXES_ARE_INPUTS = 13  # of ReduceSum, from this operator set on


class Operators:
    """Appends operators and constants to a graph.

    Args:
        model: The ONNX model, which is changed.
        prefix: Prefix of all new names; no name of the graph may begin with it.
    """

    def __init__(self, model: Any, prefix: str) -> None:
        self._graph = model.graph
        self._prefix = prefix
        self._count = 0
        self._opset = max(
            (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1
        )

    def add(self, kind: str, *inputs: str, result: str | None = None, **attributes: Any) -> str:
        """Append an operator, and return the name of its result.

        Args:
            kind: Type of the operator.
            inputs: Names of its inputs.
            result: Name of its result; None makes one.
            attributes: Its attributes.
        """
        from onnx import helper

        name = result or self._new(kind.lower())
        self._graph.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """Append a constant, and return its name."""
        from onnx import numpy_helper

        name = self._new("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def reshape(self, name: str, *lengths: int) -> str:
        """Return (N, …) with other lengths after the first."""
        return self.add("Reshape", name, self.constant((0, *lengths), np.int64))

    def take(self, name: str, rows: npt.ArrayLike, *, axis: int) -> str:
        """Return some of the values along an axis, in an order."""
        return self.add("Gather", name, self.constant(rows, np.int64), axis=axis)

    def scale(self, name: str, factor: npt.ArrayLike) -> str:
        """Return a tensor times a constant."""
        return self.add("Mul", name, self.constant(factor))

    def sum(self, name: str, *, axis: int) -> str:
        """Return the sum along an axis, which is gone then."""
        if self._opset < _AXES_ARE_INPUTS:
            return self.add("ReduceSum", name, axes=[axis], keepdims=0)
        return self.add("ReduceSum", name, self.constant([axis], np.int64), keepdims=0)

    def enlarge(self, name: str, factors: tuple[float, float]) -> str:
        """Return maps (N, C, h, w) at another size, by bilinear interpolation between centres.

        Args:
            name: Name of the maps.
            factors: Of the height, and of the width.
        """
        scales = self.constant((1, 1, *factors))
        form = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.add("Resize", name, "", scales, **form)

    def logits(self, probabilities: str, *, result: str | None = None, tiny: float) -> str:
        """Return log(p / (1 - p)) of probabilities p, which are cut off at `tiny` and 1 - `tiny`.

        1 - p is cut off by itself, because 1 - `tiny` may be 1 in float32.
        """
        least = self.constant(tiny)
        positive = self.add("Max", probabilities, least)
        other = self.add("Sub", self.constant(1), probabilities)
        negative = self.add("Max", other, least)
        logs = self.add("Log", positive), self.add("Log", negative)
        return self.add("Sub", *logs, result=result)

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{kind}_{self._count}"
