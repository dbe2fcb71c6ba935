"""The contenders of the batch benchmark, and the command of each."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.memory import Program, seconds_of
from tests.bench.peers.environment import peers_python
from tests.bench.peers.weights import SharedWeights
from tests.bench.quantized import write_int8

__all__ = [
    "COLD",
    "CONTENDERS",
    "FIXED_PRECISIONS",
    "HAND_LOOP",
    "INT8",
    "OURS",
    "REFERENCE",
    "Setup",
]

OURS, COLD, INT8 = "ours", "ours-cold", "ours-int8"
REFERENCE, HAND_LOOP = "dataloader", "hand-loop"
_PEER_MODULES = {
    "ray-data": "ray_data_stock",
    "daft": "daft_recipe",
    REFERENCE: "dataloader",
    HAND_LOOP: "hand_loop",
}
_NEED_PACKAGES = {"daft"}
FIXED_PRECISIONS = {f"ours-{precision}": precision for precision in ("float32", "bfloat16")}
"""Ours with nothing cached, and a given precision instead of a measured one."""
CONTENDERS = (OURS, COLD, INT8, *_PEER_MODULES)

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Setup:
    """The setup that all runs share.

    Attributes:
        images: Folder of images to classify.
        weights: Weights of the network.
        network: Architecture that the weights are of.
        work: Folder for outputs, logs and caches.
        peers: Folder of the environment for peers that the project does not depend on.
    """

    images: Path
    weights: SharedWeights
    network: str
    work: Path
    peers: Path

    def output(self, contender: str) -> Path:
        """Return the output folder of a contender."""
        return self.work / "outputs" / contender

    def program(self, contender: str) -> Program:
        """Clear the output of a contender, and the caches of a cold one; return its program."""
        if contender in _PEER_MODULES:
            return self._peer(contender)
        if contender not in (OURS, INT8):
            shutil.rmtree(self._caches(contender), ignore_errors=True)
        options = (
            ["--precision", FIXED_PRECISIONS[contender]] if contender in FIXED_PRECISIONS else []
        )
        return self._ours(contender, self.images, *options)

    def warm_up(self) -> None:
        """Measure the engines for the warm cache, as a user does."""
        command = [sys.executable, "-m", "eagleray", "models", "measure", str(self.weights.package)]
        seconds_of(self._program(OURS, [*command, "--json"]))

    def quantize(self, photos: Path) -> None:
        """Make the int8 package, calibrated on photographs; nothing of it is timed."""
        write_int8(self.weights, photos, self._int8)

    @property
    def _int8(self) -> Path:
        return self.work / "int8"

    def _ours(self, contender: str, inputs: Path, *options: str) -> Program:
        output = self._clear_output(contender)
        package = self._int8 / "package" if contender == INT8 else self.weights.package
        command = [sys.executable, "-m", "eagleray.jobs.predict", str(inputs)]
        command += ["--model", str(package), "--output", str(output), *options]
        return self._program(contender, [*command, "--json"])

    def _peer(self, contender: str) -> Program:
        output = self._clear_output(contender)
        python = str(peers_python(self.peers)) if contender in _NEED_PACKAGES else sys.executable
        command = [python, "-m", f"tests.bench.peers.{_PEER_MODULES[contender]}"]
        command += ["--images", str(self.images), "--weights", str(self.weights.file)]
        command += ["--network", self.network]
        return self._program(contender, [*command, "--output", str(output)])

    def _clear_output(self, contender: str) -> Path:
        output = self.output(contender)
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        return output

    def _caches(self, contender: str) -> Path:
        return self.work / "caches" / ("cold" if contender in (COLD, *FIXED_PRECISIONS) else "warm")

    def _program(self, contender: str, command: list[str]) -> Program:
        caches = self._caches(contender)
        environment = {
            **{name: value for name, value in os.environ.items() if "EAGLERAY_" not in name},
            "EAGLERAY_HOME": str(caches / "home"),
        }
        return Program(command, _ROOT, environment, self.work / f"{contender}.log")
