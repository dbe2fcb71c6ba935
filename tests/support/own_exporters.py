"""Exporters outside Eagleray, all of them at fault: each is found by EAGLERAY_EXTENSIONS."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from eagleray.exports.base import EXPORTERS, RUNTIMES, Exporter
from eagleray.exports.openvino import OpenVinoExporter
from eagleray.models.package import ModelPackage


class Unnormalised(OpenVinoExporter):
    """Forgets a half of the contract's normalisation."""

    name: ClassVar[str] = "unnormalised"

    def convert(self, package: ModelPackage, path: Path) -> None:
        contract = package.contract.model_copy(update={"mean": (0.0,) * package.contract.channels})
        manifest = package.manifest.model_copy(update={"contract": contract})
        super().convert(ModelPackage(manifest, package.files), path)


class Faulty(Exporter):
    title: ClassVar[str] = "Faulty"
    file: ClassVar[str] = "model.bin"
    runtime: ClassVar[Path] = RUNTIMES / "openvino.py"


class Crashing(Faulty):
    name: ClassVar[str] = "crashing"

    def convert(self, package: ModelPackage, path: Path) -> None:
        os.abort()


class Slow(Faulty):
    name: ClassVar[str] = "slow"

    def convert(self, package: ModelPackage, path: Path) -> None:
        time.sleep(600)


class Greedy(Faulty):
    name: ClassVar[str] = "greedy"

    def convert(self, package: ModelPackage, path: Path) -> None:
        held = np.ones(3 * 2**30, np.uint8)
        time.sleep(600)
        del held


for _kind in (Unnormalised, Crashing, Slow, Greedy):
    EXPORTERS.register(_kind.name, _kind())
