"""Exports to ExecuTorch, for phones and embedded devices, with XNNPACK kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from eagleray.exports.base import EXPORTERS, REQUIREMENTS, RUNTIMES, Exporter

if TYPE_CHECKING:
    from eagleray.models.package import ModelPackage

__all__ = ["ExecuTorchExporter"]


class ExecuTorchExporter(Exporter):
    """Writes `model.pte`, a program for one image at a time."""

    name: ClassVar[str] = "executorch"
    title: ClassVar[str] = "ExecuTorch"
    file: ClassVar[str] = "model.pte"
    runtime: ClassVar[Path] = RUNTIMES / "executorch.py"
    requirements: ClassVar[Path | None] = REQUIREMENTS / "executorch.txt"
    also_needed: ClassVar[str] = "executorch torch"

    def convert(self, package: ModelPackage, path: Path) -> None:
        """Lower the network to XNNPACK, and what that lacks to portable kernels."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from eagleray.exports.graph import export_program

        program = to_edge_transform_and_lower(
            export_program(package), partitioner=[XnnpackPartitioner()]
        )
        path.write_bytes(program.to_executorch().buffer)


EXPORTERS.register(ExecuTorchExporter.name, ExecuTorchExporter())
