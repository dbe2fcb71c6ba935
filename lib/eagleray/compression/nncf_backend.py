"""Imports NNCF, which quantizes ONNX graphs and runs them by OpenVINO while it calibrates."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.system import num_usable_cores
from eagleray.inference.openvino import import_openvino

__all__ = ["GraphRunner", "import_nncf"]

_ENGINE_MODULE = "nncf.onnx.engine"
_BATCH_SIZE = 16

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


class GraphRunner:
    """Runs an ONNX graph in float32, and its quantized layers in int8.

    Args:
        content: The ONNX file.
    """

    def __init__(self, content: bytes) -> None:
        core = import_openvino().Core()
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": num_usable_cores(),
        }
        compiled = core.compile_model(core.read_model(content), "CPU", options)
        self._request = compiled.create_infer_request()

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs of one batch by name, under each of their names."""
        results = self._request.infer(inputs)
        return {name: array for port, array in results.items() for name in port.get_names()}

    def run(self, inputs: dict[str, Array], names: Collection[str]) -> dict[str, Floats]:
        """Return outputs for any number of images, in batches of a few.

        Args:
            inputs: Arrays (N, …) by name.
            names: Names of the outputs.
        """
        count = len(next(iter(inputs.values())))
        batches = [
            self.infer({name: array[start : start + _BATCH_SIZE] for name, array in inputs.items()})
            for start in range(0, count, _BATCH_SIZE)
        ]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


@functools.cache
def import_nncf() -> ModuleType:
    """Import NNCF, without telemetry, progress bars and messages.

    NNCF's module that runs ONNX graphs needs ONNX Runtime. OpenVINO, which is installed with it,
    runs them as well, and several times faster, so that module is replaced before it is imported.
    """
    import_openvino()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import nncf
    from nncf.common.engine import Engine

    class OpenVinoEngine(Engine):  # type: ignore[misc]
        def __init__(self, model: Any, **_: Any) -> None:
            self._runner = GraphRunner(model.SerializeToString())

        def infer(self, input_data: dict[str, Array]) -> dict[str, Array]:
            return self._runner.infer(input_data)

    module = ModuleType(_ENGINE_MODULE)
    module.ONNXEngine = OpenVinoEngine  # type: ignore[attr-defined]
    sys.modules[_ENGINE_MODULE] = module
    nncf.set_log_level(logging.ERROR)
    return nncf  # type: ignore[no-any-return]
