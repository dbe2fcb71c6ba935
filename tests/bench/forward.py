"""Forward pass of the predictor against plain eager float32, on the same images and weights.

    make bench-forward
    python -m tests.bench.forward resnet18 resnet50

Both take decoded uint8 images in memory and give probabilities. Rounds are interleaved; the median
of each and their ratio are printed, with the largest difference of any probability beside them.
"""

from __future__ import annotations

import math
import statistics
import sys
import time

import numpy as np
import numpy.typing as npt
import torch

from eagleray.inference.predictor import Predictor
from eagleray.models.network import ImageNetwork
from eagleray.registry.references import load_model

ROUNDS = 7
NUM_IMAGES = 64
EAGER_BATCH = 32


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {NUM_IMAGES} images, median of {ROUNDS} rounds\n")
    print("| network | eager float32 | predictor | ratio | range of ratios | largest difference |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or ["resnet18", "resnet50"]:
        compare(name)


def compare(name: str) -> None:
    package = load_model(f"random:{name}").package
    images = np.random.default_rng(0).integers(
        0, 256, (NUM_IMAGES, *package.contract.shape), dtype=np.uint8
    )
    eager = ImageNetwork(package.build_module(), package.contract)
    predictor = Predictor(package, expected_images=math.inf)

    def run_eager() -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            parts = torch.split(torch.from_numpy(images), EAGER_BATCH)
            outputs = torch.cat([eager(part).softmax(1) for part in parts]).numpy()
        return np.asarray(outputs, np.float32)

    def run_predictor() -> npt.NDArray[np.float32]:
        return predictor.forward(images)

    times: dict[str, list[float]] = {"eager": [], "predictor": []}
    for round_number in range(ROUNDS + 2):
        for contender, run in (("eager", run_eager), ("predictor", run_predictor)):
            started = time.perf_counter()
            run()
            if round_number >= 2:
                times[contender].append(time.perf_counter() - started)
    difference = np.abs(run_eager() - run_predictor()).max()
    ratios = [a / b for a, b in zip(times["eager"], times["predictor"], strict=True)]
    print(
        f"| {name} | {NUM_IMAGES / statistics.median(times['eager']):.1f}/s "
        f"| {NUM_IMAGES / statistics.median(times['predictor']):.1f}/s "
        f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
        f"| {difference:.4f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
