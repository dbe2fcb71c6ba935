"""Who takes part in the batch benchmark, and how each is started."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.folders import photos_of
from tests.bench.memory import Program, seconds_of
from tests.bench.peers.environment import peers_python
from tests.bench.peers.weights import SharedWeights

__all__ = ["COLD", "EVERYBODY", "HAND_LOOP", "OURS", "REFERENCE", "TOLD", "Stage"]

OURS, COLD, REFERENCE, HAND_LOOP = "ours", "ours-cold", "dataloader", "hand-loop"
_PEER_MODULES = {
    "ray-data": "ray_data_stock",
    "daft": "daft_recipe",
    REFERENCE: "dataloader",
    HAND_LOOP: "hand_loop",
}
_NEED_PACKAGES = {"daft"}
TOLD = {f"ours-{precision}": precision for precision in ("float32", "bfloat16")}
"""Ours with nothing cached, and the precision told instead of measured."""
EVERYBODY = (OURS, COLD, *_PEER_MODULES)

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Stage:
    """What all runs share.

    Attributes:
        images: Folder that is classified.
        weights: Of the network.
        work: Folder for outputs, logs and caches.
        peers: Folder of the environment for peers that the project does not depend on.
    """

    images: Path
    weights: SharedWeights
    work: Path
    peers: Path

    def output(self, who: str) -> Path:
        """Where a contestant writes."""
        return self.work / "outputs" / who

    def program(self, who: str) -> Program:
        """Make a contestant ready: its output is gone, and a cold one's caches are."""
        if who in _PEER_MODULES:
            return self._peer(who)
        if who != OURS:
            shutil.rmtree(self._caches(who), ignore_errors=True)
        options = ["--precision", TOLD[who]] if who in TOLD else []
        return self._ours(who, self.images, *options)

    def warm_up(self) -> None:
        """Compile our network into the warm cache, by a job on one image."""
        first = photos_of(self.images)[0]
        seconds_of(self._ours(OURS, first, "--compile", "always"))

    def _ours(self, who: str, inputs: Path, *options: str) -> Program:
        output = self._clear_output(who)
        command = [sys.executable, "-m", "eagleray.jobs.predict", str(inputs)]
        command += ["--model", str(self.weights.package), "--output", str(output), *options]
        return self._program(who, [*command, "--json"])

    def _peer(self, who: str) -> Program:
        output = self._clear_output(who)
        python = str(peers_python(self.peers)) if who in _NEED_PACKAGES else sys.executable
        command = [python, "-m", f"tests.bench.peers.{_PEER_MODULES[who]}"]
        command += ["--images", str(self.images), "--weights", str(self.weights.file)]
        return self._program(who, [*command, "--output", str(output)])

    def _clear_output(self, who: str) -> Path:
        output = self.output(who)
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        return output

    def _caches(self, who: str) -> Path:
        return self.work / "caches" / ("warm" if who == OURS else "cold")

    def _program(self, who: str, command: list[str]) -> Program:
        caches = self._caches(who)
        environment = {
            # The compiler keeps a cache of its own beside ours; cold means without that, too.
            **{name: value for name, value in os.environ.items() if "EAGLERAY_" not in name},
            "EAGLERAY_HOME": str(caches / "home"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        }
        return Program(command, _ROOT, environment, self.work / f"{who}.log")
