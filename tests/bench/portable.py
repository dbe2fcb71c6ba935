"""Compares predictions between the instruction sets that this CPU can emulate.

    make bench-portable PHOTOS=folder

Each network predicts the photographs once for each set of instructions, in float32 by
the eager engine, in a process of its own. The table shows the largest difference of a probability
from this CPU's own, and how many labels agree. The weights are random, and their last layer is
scaled so that the logits are spread as those of trained networks are.
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

from eagleray.inference.predictor import Predictor
from eagleray.models.package import read_package
from tests.bench.folders import photos_of
from tests.bench.peers.weights import write_weights
from tests.portable import MACHINES, can_emulate

NETWORKS = ("resnet18", "mobilenet_v3_small")


def main() -> None:
    """Predict as every machine, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--package", help="Internal: predict with it, do not compare.")
    parser.add_argument("--output", type=Path, help="Internal: where the probabilities go.")
    options = parser.parse_args()
    if options.package is not None:
        np.save(options.output, _predict(options.package, options.photos))
        return
    print("| network | instructions | largest difference | same label |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            package = Path(folder) / network
            write_weights(photos_of(options.photos), package, network=network)
            own = _predict_as({}, package, options.photos)
            for name, environment in MACHINES.items():
                if "ATEN_CPU_CAPABILITY" in environment and can_emulate(name):
                    found = _predict_as(environment, package, options.photos)
                    agree = int((found.argmax(1) == own.argmax(1)).sum())
                    largest = float(np.abs(found - own).max())
                    print(f"| {network} | {name} | {largest:.2g} | {agree} of {len(own)} |")


def _predict(package: str, photos: Path) -> npt.NDArray[np.float32]:
    predictor = Predictor(read_package(package), precision="float32", engine="eager")
    outcomes = predictor.predict([file.read_bytes() for file in photos_of(photos)])
    return np.stack([one.prediction.probabilities for one in outcomes if one.prediction])


def _predict_as(
    environment: dict[str, str], package: Path, photos: Path
) -> npt.NDArray[np.float32]:
    output = package.with_suffix(".npy")
    command = [sys.executable, "-m", "tests.bench.portable", "--photos", str(photos)]
    command += ["--package", str(package), "--output", str(output)]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    probabilities: npt.NDArray[np.float32] = np.load(output)
    return probabilities


if __name__ == "__main__":
    main()
