"""Exports to LiteRT (TensorFlow Lite), for phones and embedded devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from eagleray.exports.base import EXPORTERS, REQUIREMENTS, RUNTIMES, Exporter

if TYPE_CHECKING:
    from eagleray.models.package import ModelPackage

__all__ = ["LiteRtExporter"]


class LiteRtExporter(Exporter):
    """Writes `model.tflite`, a flat buffer for one image at a time."""

    name: ClassVar[str] = "litert"
    title: ClassVar[str] = "LiteRT"
    file: ClassVar[str] = "model.tflite"
    runtime: ClassVar[Path] = RUNTIMES / "litert.py"
    requirements: ClassVar[Path | None] = REQUIREMENTS / "litert.txt"
    also_needed: ClassVar[str] = "ai-edge-litert"

    def convert(self, package: ModelPackage, path: Path) -> None:
        """Convert the network with litert-torch."""
        import litert_torch
        import torch

        from eagleray.exports.graph import ExportedNetwork

        network = ExportedNetwork(package).eval()
        image = torch.zeros((1, *package.contract.shape), dtype=torch.uint8)
        litert_torch.convert(network, (image,)).export(str(path))


EXPORTERS.register(LiteRtExporter.name, LiteRtExporter())
