"""Measures what distillation and pruning bring: accuracy, multiply-adds, bytes and speed.

    python -m tests.bench.compression --data cifar10/
    python -m tests.bench.compression --data cifar10/ --epochs 4 --seeds 1
    python -m tests.bench.compression --data cifar10/ --parent packages/parent --image-size 96

The folder has `train/` and `test/`, each with a folder for each class. A ResNet-20 is trained alone
and taught by a ResNet-56, with several seeds each; or, with `--parent`, by a network with weights
of elsewhere that is fine-tuned on the same images. That of each seed is then pruned by 30 % of its
multiply-adds and fine-tuned, alone and taught by its parent. The last line says what was gained.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from eagleray.core.settings import Settings
from eagleray.inference.predictor import Predictor
from eagleray.models.cost import model_cost
from eagleray.models.package import read_package
from eagleray.registry.references import load_model
from eagleray.registry.registry import Registry

STUDENT, TEACHER = "resnet20", "resnet56"
COMMON = [
    *("--optimizer", "sgd", "--learning-rate", "0.1", "--weight-decay", "5e-4"),
    *("--horizontal-flip", "--random-translation", "0.125"),
]
SPEED_IMAGES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40, help="Of teacher and students.")
    parser.add_argument("--parent", type=Path, help="Package that the teacher is fine-tuned from.")
    parser.add_argument("--image-size", type=int, default=96, help="Of the fine-tuned teacher.")
    parser.add_argument("--teacher-epochs", type=int, default=4, help="Of the fine-tuned teacher.")
    parser.add_argument("--tune-epochs", type=int, default=20, help="After pruning.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prune", type=float, default=0.3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--words", default="", help="Options of the taught runs.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.data, Path(name), options.workers)
        bench.compare(options)


class Bench:
    """Runs of the train command in a home of their own."""

    def __init__(self, data: Path, home: Path, workers: int) -> None:
        self.data, self.home, self.workers = data, home, workers

    def train(self, name: str, *words: str, epochs: int, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        command = [sys.executable, "-m", "eagleray.jobs.train", str(self.data / "train")]
        fixed = ["--test-data", str(self.data / "test"), "--name", name, *COMMON]
        numbers = ["--epochs", str(epochs), "--seed", str(seed), "--workers", str(self.workers)]
        done = subprocess.run(
            [*command, *fixed, *numbers, *words, "--json"],
            check=True,
            env={**os.environ, "EAGLERAY_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        summary: dict[str, Any] = json.loads(done.stdout)
        taken = time.monotonic() - started
        accuracy = summary["test"]["accuracy"]
        print(f"  {summary['model']}: {accuracy:.4f} in {taken:.0f} s", file=sys.stderr, flush=True)
        return summary

    def compare(self, options: argparse.Namespace) -> None:
        epochs, tune_epochs = options.epochs, options.tune_epochs
        seeds = range(options.seeds)
        large = self.teacher(options)
        small = ["--architecture", STUDENT]
        taught = ["--teacher", large["model"], *options.words.split()]
        alone = [self.train("alone", *small, epochs=epochs, seed=seed) for seed in seeds]
        distilled = [
            self.train("distilled", *small, *taught, epochs=epochs, seed=seed) for seed in seeds
        ]
        pruned = [self.prune(one, options.prune, tune_epochs) for one in alone]
        both = [
            self.prune(one, options.prune, tune_epochs, "--teacher", one["model"]) for one in alone
        ]
        rows = {
            "teacher": [large],
            STUDENT: alone,
            f"{STUDENT}, taught": distilled,
            f"{STUDENT}, pruned": pruned,
            f"{STUDENT}, pruned, taught by itself": both,
        }
        heading = ("accuracy of each seed", "mean", "sd", "multiply-adds", "bytes", "images/s")
        print(f"{'':34}{heading[0]:26}{heading[1]:8}{heading[2]:8}", end="")
        print(f"{heading[3]:>14}{heading[4]:>12}{heading[5]:>10}")
        for title, runs in rows.items():
            print(f"{title:34}{self.figures(runs)}", flush=True)
        base = mean(alone)
        for title, runs in (("taught", distilled), ("pruned", pruned), ("both", both)):
            print(f"{title}: {100 * (mean(runs) - base):+.2f} points")

    def teacher(self, options: argparse.Namespace) -> dict[str, Any]:
        """Train the teacher, or fine-tune it at a tenth of the learning rate."""
        if options.parent is None:
            words = ["--architecture", TEACHER]
            return self.train("large", *words, epochs=options.epochs, seed=0)
        registry = Registry(Settings(home=self.home))
        parent = registry.register(read_package(str(options.parent)))
        words = ["--parent", parent.reference, "--image-size", str(options.image_size)]
        words += ["--learning-rate", "0.01"]
        return self.train("large", *words, epochs=options.teacher_epochs, seed=0)

    def prune(
        self, parent: dict[str, Any], share: float, epochs: int, *words: str
    ) -> dict[str, Any]:
        """Prune the network of a run, and fine-tune it at a fifth of the learning rate."""
        changes = ["--parent", parent["model"], "--prune", str(share), "--learning-rate", "0.02"]
        seed = int(parent["model"].rpartition("/")[2]) - 1
        return self.train("pruned", *changes, *words, epochs=epochs, seed=seed)

    def figures(self, runs: list[dict[str, Any]]) -> str:
        scores = [run["test"]["accuracy"] for run in runs]
        shown = "  ".join(f"{score:.4f}" for score in scores)
        spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "-"
        package = load_model(runs[0]["model"], Settings(home=self.home)).package
        manifest = package.manifest
        cost = model_cost(manifest.architecture, manifest.contract.size)
        size = len(package.files["model.safetensors"])
        predictor = Predictor(package, engine="eager", precision="float32")
        speed = images_per_second(predictor, self.images())
        return (
            f"{shown:26}{mean(runs):<8.4f}{spread:8}{cost.multiply_adds or 0:>14,}{size:>12,}"
            f"{speed:>10,.0f}"
        )

    def images(self) -> list[bytes]:
        files = sorted((self.data / "test").rglob("*.*"))[:SPEED_IMAGES]
        return [file.read_bytes() for file in files]


def images_per_second(predictor: Predictor, images: list[bytes]) -> float:
    """Return the best of three passes over the images, decoding included."""
    predictor.predict(images)
    rates: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        predictor.predict(images)
        rates.append(len(images) / (time.perf_counter() - started))
    return max(rates)


def mean(runs: list[dict[str, Any]]) -> float:
    return float(statistics.mean(run["test"]["accuracy"] for run in runs))


if __name__ == "__main__":
    main()
