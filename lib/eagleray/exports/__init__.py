"""Exports models to other runtimes, each proven to predict like the original before it is kept."""

from eagleray.exports import coreml, executorch, litert, onnx, openvino

__all__ = ["coreml", "executorch", "litert", "onnx", "openvino"]
