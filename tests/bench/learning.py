"""Measures the accuracy of training by the number of workers, and of transfer from a parent.

    python -m tests.bench.learning --data cifar10/
    python -m tests.bench.learning --data cifar10/ --only transfer

The folder has `train/` and `test/`, each with a folder for each class. `workers`: the same
accuracy on 1, 2 and 4 workers, three seeds each, and the same curve twice. `transfer`: a backbone
learns half of the classes; the other half, with few images each, is learned from scratch, on the
frozen backbone, and by tuning all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from eagleray.training.loop.checkpoint import CheckpointStore

SEEDS = (0, 1, 2)
COMMON = [
    "--architecture",
    "resnet20",
    "--optimizer",
    "sgd",
    "--horizontal-flip",
    "--random-translation",
    "0.125",
]
RECIPES = {
    "from scratch": ["--learning-rate", "0.1"],
    "frozen backbone": ["--parent", "PARENT", "--freeze", "backbone", "--learning-rate", "0.1"],
    "all of it tuned": ["--parent", "PARENT", "--layer-decay", "0.8", "--learning-rate", "0.03"],
    "unfrozen after a third": [
        *("--parent", "PARENT", "--freeze", "backbone", "--unfreeze", "10:all"),
        *("--learning-rate", "0.05"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=["workers", "transfer"])
    parser.add_argument("--images", type=int, default=200, help="Of a class, for `workers`.")
    parser.add_argument("--epochs", type=int, default=8, help="For `workers`.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.data, Path(name))
        if options.only != "transfer":
            bench.compare_workers(options.images, options.epochs)
        if options.only != "workers":
            bench.compare_transfer()


class Bench:
    """Runs of the train command in a home of their own."""

    def __init__(self, data: Path, home: Path) -> None:
        self.data, self.home = data, home

    def train(self, data: Path, test: Path, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "eagleray.jobs.train", str(data), "--test-data", str(test)]
        done = subprocess.run(
            [*command, *COMMON, *words, "--json"],
            check=True,
            env={**os.environ, "EAGLERAY_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def choose(self, name: str, part: str, classes: list[str], count: int) -> Path:
        """Make a tree of the first images of some classes."""
        folder = self.home / name / part
        for label in classes:
            (folder / label).mkdir(parents=True)
            for image in sorted((self.data / part / label).iterdir())[:count]:
                (folder / label / image.name).symlink_to(image.resolve())
        return folder

    def classes(self) -> list[str]:
        return sorted(folder.name for folder in (self.data / "train").iterdir())

    def compare_workers(self, count: int, epochs: int) -> None:
        data, test = self.choose("all", "train", self.classes(), count), self.data / "test"
        words = ["--name", "workers", "--epochs", str(epochs), "--learning-rate", "0.1"]
        curves: dict[tuple[int, int], list[float]] = {}
        print(f"{'workers':10}{'accuracy of each seed':32}{'mean':8}{'sd':8}last epoch's loss")
        for workers in (1, 2, 4):
            runs = [
                self.train(data, test, *words, "--workers", str(workers), "--seed", str(seed))
                for seed in SEEDS
            ]
            scores = [run["test"]["accuracy"] for run in runs]
            losses = [run["epochs"][-1]["train_loss"] for run in runs]
            shown = "  ".join(f"{score:.3f}" for score in scores)
            print(
                f"{workers:<10}{shown:32}{statistics.mean(scores):<8.3f}"
                f"{statistics.stdev(scores):<8.3f}{statistics.mean(losses):.3f}"
            )
            for seed, run in zip(SEEDS, runs, strict=True):
                curves[workers, seed] = curve(run)
        again = curve(self.train(data, test, *words, "--workers", "2", "--seed", "0"))
        print(f"the same run twice: largest difference {difference(curves[2, 0], again):.3g}")
        first = [abs(curves[1, 0][0] - curves[workers, 0][0]) for workers in (2, 4)]
        print(f"first step on 2 and 4 workers against 1: {first[0]:.2g}, {first[1]:.2g}")

    def compare_transfer(self) -> None:
        known, new = self.classes()[:5], self.classes()[5:]
        many = self.choose("known", "train", known, 600)
        known_test = self.choose("known", "test", known, 100)
        few = self.choose("new", "train", new, 56)  # a tenth of them chooses the epoch
        test = self.choose("new", "test", new, 100)
        words = ["--name", "backbone", "--epochs", "15", "--learning-rate", "0.1"]
        backbone = self.train(many, known_test, *words, "--workers", "2")
        print(f"backbone on {', '.join(known)}: accuracy {backbone['test']['accuracy']:.3f}")
        print(f"50 images a class of {', '.join(new)}:")
        for name, recipe in RECIPES.items():
            filled = [backbone["model"] if word == "PARENT" else word for word in recipe]
            scores = [
                self.train(
                    *(few, test, "--name", "few", "--seed", str(seed)),
                    *("--epochs", "30", "--batch-size", "32", *filled),
                )["test"]["accuracy"]
                for seed in SEEDS
            ]
            print(f"  {name:24}{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}")


def curve(run: dict[str, Any]) -> list[float]:
    """The loss of every step."""
    checkpoint = CheckpointStore(str(Path(run["folder"]) / "checkpoints")).latest()
    assert checkpoint is not None
    losses: list[float] = checkpoint.tensors["losses"].tolist()
    return losses


def difference(one: list[float], other: list[float]) -> float:
    return max(abs(left - right) for left, right in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
