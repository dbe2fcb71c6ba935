"""Exports to OpenVINO's intermediate representation, for Intel and ARM processors."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from eagleray.exports.base import EXPORTERS, RUNTIMES, Exporter

if TYPE_CHECKING:
    from eagleray.models.package import ModelPackage

__all__ = ["OpenVinoExporter"]


class OpenVinoExporter(Exporter):
    """Writes `model.xml` with its weights in `model.bin`."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    file: ClassVar[str] = "model.xml"
    runtime: ClassVar[Path] = RUNTIMES / "openvino.py"
    carries_graphs: ClassVar[bool] = True
    carries_several: ClassVar[bool] = True
    batch: ClassVar[str] = "any"
    also_needed: ClassVar[str] = "openvino"

    def convert(self, package: ModelPackage, path: Path) -> None:
        """Write the graph in float32, or int8 where the package is quantized."""
        from eagleray.exports.graph import onnx_graph
        from eagleray.inference.openvino import import_openvino

        openvino = import_openvino()
        graph = openvino.Core().read_model(onnx_graph(package).SerializeToString())
        openvino.save_model(graph, path, compress_to_fp16=False)

    def load_runtime(self) -> ModuleType:
        """Import OpenVINO without its telemetry first."""
        from eagleray.inference.openvino import import_openvino

        import_openvino()
        return super().load_runtime()


EXPORTERS.register(OpenVinoExporter.name, OpenVinoExporter())
