"""Exports to Core ML, for Apple's devices; converted anywhere, run on macOS only."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from eagleray.core.errors import InputError
from eagleray.exports.base import EXPORTERS, IMAGES, REQUIREMENTS, RUNTIMES, Exporter, only_output

if TYPE_CHECKING:
    from eagleray.models.package import ModelPackage

__all__ = ["CoreMlExporter"]

_MIN_WEIGHTS = 0.9  # of the parameters' bytes: constants may be folded
_EXAMPLES = Path(__file__).with_name("examples")


class CoreMlExporter(Exporter):
    """Writes `model.mlpackage`, an ML program in float32 whose input is an image."""

    name: ClassVar[str] = "coreml"
    title: ClassVar[str] = "Core ML"
    file: ClassVar[str] = "model.mlpackage"
    runtime: ClassVar[Path] = RUNTIMES / "coreml.py"
    requirements: ClassVar[Path | None] = REQUIREMENTS / "coreml.txt"
    takes: ClassVar[str] = "an image of 8 bits per channel"
    also_needed: ClassVar[str] = "coremltools"

    @property
    def cannot_run(self) -> str | None:
        """Core ML is a part of macOS."""
        return None if sys.platform == "darwin" else "runs on macOS only"

    def convert(self, package: ModelPackage, path: Path) -> None:
        """Convert the network for iOS 17 and macOS 14."""
        import coremltools

        from eagleray.exports.graph import export_program

        height, width, channels = package.contract.shape
        colors = coremltools.colorlayout
        image = coremltools.ImageType(
            name=IMAGES,
            shape=(1, channels, height, width),
            color_layout=colors.RGB if channels == 3 else colors.GRAYSCALE,
        )
        output = only_output(package)
        model = coremltools.convert(
            export_program(package, planar=True).run_decompositions({}),
            inputs=[image],
            outputs=[coremltools.TensorType(name=output.name)],
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=coremltools.precision.FLOAT32,
        )
        model.save(str(path))

    def inspect(self, package: ModelPackage, path: Path) -> dict[str, str]:
        """Compare the specification and the size of the weights with the package."""
        import coremltools

        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
        _require_interface(spec.description, package)
        height, width = package.contract.size
        output = only_output(package)
        weights = sum(file.stat().st_size for file in path.rglob("weight.bin"))
        parameters = 4 * sum(one.numel() for one in package.build_module().parameters())
        if weights < _MIN_WEIGHTS * parameters:
            raise InputError(
                f"The Core ML package has {weights:,} bytes of weights, the network "
                f"{parameters:,}; nothing is written."
            )
        return {
            "input": f"{IMAGES}: an image of {height} x {width} pixels",
            "output": f"{output.name}: {' x '.join(map(str, output.shape))} values, float32",
            "operations": _operations(spec),
            "weights": f"{weights:,} bytes; the network's parameters take {parameters:,}",
        }

    def examples(self, package: ModelPackage) -> Mapping[str, str]:
        """Return a program in Swift, which was not compiled."""
        output = only_output(package)
        name = "Predict.swift.txt" if len(output.shape) == 1 else "PredictMask.swift.txt"
        text = (_EXAMPLES / name).read_text()
        return {"Predict.swift": text.replace("OUTPUT", output.name)}


def _require_interface(description: Any, package: ModelPackage) -> None:
    height, width = package.contract.size
    (image,), (output,) = description.input, description.output
    found = (image.name, image.type.imageType.height, image.type.imageType.width)
    shape = tuple(output.type.multiArrayType.shape)
    if found != (IMAGES, height, width) or shape != (1, *only_output(package).shape):
        raise InputError(
            f"The Core ML package takes {found} and returns {shape}, which is not what the model "
            "does; nothing is written."
        )


def _operations(spec: Any) -> str:
    counts: Counter[str] = Counter()
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            counts.update(one.type for one in block.operations)
    del counts["const"]
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


EXPORTERS.register(CoreMlExporter.name, CoreMlExporter())
