"""The interface of an exporter, which writes a model for another runtime, and all of them by name.

An exporter is one module with a subclass of `Exporter` and one registration:

    EXPORTERS.register("onnx", OnnxExporter())

Both of its steps run in processes of their own, which see the packages of its requirements.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Union

from eagleray.core.extensions import Extensions

if TYPE_CHECKING:  # the names of the formats are listed where numpy and PyTorch are not needed
    import numpy as np
    import numpy.typing as npt

    from eagleray.models.package import ModelPackage
    from eagleray.tasks.exported import ExportedOutput

__all__ = [
    "EXPORTERS",
    "IMAGES",
    "REQUIREMENTS",
    "RUNTIMES",
    "Arrays",
    "Exporter",
    "RunImage",
    "only_output",
    "output_names",
]

Arrays = Union["npt.NDArray[np.float32]", Mapping[str, "npt.NDArray[np.float32]"]]
RunImage = Callable[["npt.NDArray[np.uint8]"], Arrays]
"""Runs an exported model on one uint8 image (1, H, W, C); returns its outputs (1, num_values), or
those of a model with several outputs (1, …) by name."""

REQUIREMENTS = Path(__file__).with_name("requirements")
"""Folder of the pinned requirements of each format."""

RUNTIMES = Path(__file__).with_name("runtimes")
"""Folder of the files that run exported models."""

IMAGES = "images"


class Exporter(ABC):
    """Writes models for one runtime, and runs them there.

    Attributes:
        name: The format's name, as it is registered.
        title: What the format is called.
        file: Name of the exported file or folder.
        runtime: Python file that runs the exported file, and is part of the export. It imports
            nothing of Eagleray, and has a function `load(path: str) -> RunImage` and a text
            `VERSION`, such as `ONNX Runtime 1.31.0`.
        requirements: File of pinned packages with hashes, as pip reads it, which Eagleray does not
            depend on; None if the export needs none.
        carries_graphs: Whether quantized packages can be exported.
        carries_several: Whether models with several outputs can be exported.
        takes: What the exported model takes an image as.
        batch: Sizes of batches that the exported model takes: `any` or `1`.
        also_needed: Packages that the example needs beside numpy and Pillow, as pip names them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    file: ClassVar[str]
    runtime: ClassVar[Path]
    requirements: ClassVar[Path | None] = None
    carries_graphs: ClassVar[bool] = False
    carries_several: ClassVar[bool] = False
    takes: ClassVar[str] = "a uint8 array, NHWC"
    batch: ClassVar[str] = "1"
    also_needed: ClassVar[str] = ""

    @property
    def cannot_run(self) -> str | None:
        """Why the runtime cannot run on this machine, as a predicate; None if it can."""
        return None

    @abstractmethod
    def convert(self, package: ModelPackage, path: Path) -> None:
        """Write a package's network, with normalisation and activation, as `path`.

        Args:
            package: The model package.
            path: A new file or folder, named `file`.

        Raises:
            InputError: If the format cannot carry the network.
        """

    def load_runtime(self) -> ModuleType:
        """Import the file `runtime`."""
        spec = importlib.util.spec_from_file_location("runtime", self.runtime)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def inspect(self, package: ModelPackage, path: Path) -> dict[str, str]:  # noqa: ARG002
        """Check the exported file where the runtime cannot run; return what was found, by name.

        Raises:
            InputError: If the file does not fit the package.
        """
        return {}

    def examples(self, package: ModelPackage) -> Mapping[str, str]:  # noqa: ARG002
        """Return further examples beside the Python one, by file name."""
        return {}


EXPORTERS: Extensions[Exporter] = Extensions("export format")


def output_names(package: ModelPackage) -> tuple[str, ...]:
    """Return the names of an exported model's outputs, see `Task.describe_exported`."""
    return tuple(one.name for one in package.task.describe_exported(package.contract))


def only_output(package: ModelPackage) -> ExportedOutput:
    """Return the only output of an exported model."""
    (output,) = package.task.describe_exported(package.contract)
    return output
