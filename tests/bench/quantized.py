"""Makes the int8 version of the weights that all contenders share, by the commands of a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.peers.weights import SharedWeights

__all__ = ["write_int8"]


def write_int8(weights: SharedWeights, photos: Path, folder: Path) -> Path:
    """Quantize a package, calibrated on photographs.

    Args:
        weights: The float weights.
        photos: Folder of photographs.
        folder: To be made.

    Returns:
        The folder of the int8 package.
    """
    environment = {**os.environ, "EAGLERAY_HOME": str(folder / "home")}
    package = folder / "package"
    for words in (
        ["register", str(weights.package)],
        # The predictions of a random network are close to each other: no layer is to stay float.
        ["quantize", f"{weights.name}/1", "--data", str(photos), "--max-drop", "1"],
        ["export", f"{weights.name}/2", "--output", str(package)],
    ):
        command = [sys.executable, "-m", "eagleray", "models", *words, "--json"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return package
