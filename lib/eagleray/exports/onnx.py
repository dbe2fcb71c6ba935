"""Exports to ONNX, for ONNX Runtime and whatever else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from eagleray.exports.base import EXPORTERS, REQUIREMENTS, RUNTIMES, Exporter

if TYPE_CHECKING:
    from eagleray.models.package import ModelPackage

__all__ = ["OnnxExporter"]


class OnnxExporter(Exporter):
    """Writes `model.onnx`; the graph of a quantized package stays as it is."""

    name: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    file: ClassVar[str] = "model.onnx"
    runtime: ClassVar[Path] = RUNTIMES / "onnx.py"
    requirements: ClassVar[Path | None] = REQUIREMENTS / "onnx.txt"
    carries_graphs: ClassVar[bool] = True
    carries_several: ClassVar[bool] = True
    batch: ClassVar[str] = "any"
    also_needed: ClassVar[str] = "onnxruntime"

    def convert(self, package: ModelPackage, path: Path) -> None:
        """Write the graph."""
        from eagleray.exports.graph import onnx_graph

        path.write_bytes(onnx_graph(package).SerializeToString())


EXPORTERS.register(OnnxExporter.name, OnnxExporter())
