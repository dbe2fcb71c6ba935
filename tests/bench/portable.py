"""Compares predictions between the instruction sets that this CPU can act.

    make bench-portable PHOTOS=folder

Each network predicts the photographs once for each set of instructions, in float32 and not
compiled, in a process of its own. The table shows the largest difference of a probability from this
CPU's own, and how many labels agree, with random weights, whose highest probabilities lie closer
together than those of trained ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eagleray.models.sources import load_model
from eagleray.predictor import Predictor
from eagleray.settings import read_settings
from tests.portable import MACHINES, can_act

NETWORKS = ("resnet18", "mobilenet_v3_small")


def main() -> None:
    """Predict as every machine, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, help="Internal: predict, do not compare.")
    parser.add_argument("--output", type=Path, help="Internal: where the probabilities go.")
    options = parser.parse_args()
    if options.network is not None:
        np.save(options.output, _predict(options.network, options.photos))
        return
    print("| network | instructions | largest difference | same label |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            own = _predict_as({}, network, options.photos, Path(folder))
            for name, environment in MACHINES.items():
                if "ATEN_CPU_CAPABILITY" in environment and can_act(name):
                    found = _predict_as(environment, network, options.photos, Path(folder))
                    agree = int((found.argmax(1) == own.argmax(1)).sum())
                    largest = float(np.abs(found - own).max())
                    print(f"| {network} | {name} | {largest:.2g} | {agree} of {len(own)} |")


def _predict(network: str, photos: Path) -> npt.NDArray[np.float32]:
    package = load_model(f"random:{network}", read_settings()).package
    predictor = Predictor(package, precision="float32", compile_mode="never")
    files = sorted(file for file in photos.iterdir() if file.is_file())
    outcomes = predictor.predict([file.read_bytes() for file in files])
    return np.stack([one.prediction.probabilities for one in outcomes if one.prediction])


def _predict_as(
    environment: dict[str, str], network: str, photos: Path, folder: Path
) -> npt.NDArray[np.float32]:
    output = folder / "probabilities.npy"
    command = [sys.executable, "-m", "tests.bench.portable", "--photos", str(photos)]
    command += ["--network", network, "--output", str(output)]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    probabilities: npt.NDArray[np.float32] = np.load(output)
    return probabilities


if __name__ == "__main__":
    main()
