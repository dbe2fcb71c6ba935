"""Training side by side with a plain DDP script, in one run, on the same images and cores.

    python -m tests.bench.train --photos FOLDER
    python -m tests.bench.train --photos FOLDER --rounds 3 --precision bfloat16

On GPUs where there are any, one for each worker. Images per second after the first epoch, which
for ours decodes, as medians over rounds that take turns; the share of time that ours waits for data
and for checkpoints; and the loss that each reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.folders import photos_of

EPOCHS = 3
CROP, RATE = "0.25", "0.01"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--batch-size", default="32")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--precision", default="float32", help="Of ours.")
    parser.add_argument("--peer-precision", default="float32", help="Of the plain DDP script.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = fill_classes(folder / "images", photos_of(options.photos), options.images)
        ours, theirs = [], []
        for number in range(options.rounds):
            theirs.append(run_peer(options, data, folder / f"peer-{number}.json"))
            ours.append(run_ours(options, data, folder / f"home-{number}"))
            print(f"round {number + 1}: DDP {rate(theirs[-1]):.1f}/s, ours {rate(ours[-1]):.1f}/s")
    show(ours, theirs)


def fill_classes(
    folder: Path, photos: Sequence[Path], num_images: int, num_classes: int = 10
) -> Path:
    """Make an image-folder tree of photographs; each photograph stays in one class."""
    for index in range(num_images):
        photo = photos[index % len(photos)]
        target = folder / f"class-{index % len(photos) % num_classes}" / f"{index:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(photo.resolve())
    return folder


def run_peer(options: argparse.Namespace, data: Path, output: Path) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", options.workers, "-m", "tests.bench.peers.ddp"]
    command += ["--data", str(data), "--architecture", options.architecture]
    command += ["--epochs", str(EPOCHS), "--batch-size", options.batch_size]
    command += [
        "--random-resized-crop",
        CROP,
        "--learning-rate",
        RATE,
        "--precision",
        options.peer_precision,
    ]
    command += ["--output", str(output)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=quiet, stderr=subprocess.DEVNULL)
    epochs: list[dict[str, float]] = json.loads(output.read_text())
    return epochs


def run_ours(options: argparse.Namespace, data: Path, home: Path) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "eagleray.jobs.train", str(data), "--name", "bench", "--json"]
    command += ["--architecture", options.architecture, "--contract", "torchvision-reference"]
    command += ["--validation-fraction", "0.05", "--test-fraction", "0.05", "--horizontal-flip"]
    command += [
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        options.batch_size,
        "--random-resized-crop",
        CROP,
    ]
    command += ["--optimizer", "sgd", "--learning-rate", RATE, "--lr-schedule", "constant"]
    command += [
        "--warmup-ratio",
        "0",
        "--workers",
        options.workers,
        "--precision",
        options.precision,
    ]
    environment = {**os.environ, "EAGLERAY_HOME": str(home)}
    done = subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    epochs: list[dict[str, float]] = json.loads(done.stdout)["epochs"]
    return epochs


def rate(epochs: list[dict[str, float]]) -> float:
    """Images per second after the first epoch."""
    return statistics.mean(epoch["images_per_second"] for epoch in epochs[1:])


def show(ours: list[list[dict[str, float]]], theirs: list[list[dict[str, float]]]) -> None:
    ratios = [rate(mine) / rate(peer) for mine, peer in zip(ours, theirs, strict=True)]
    later = [epoch for epochs in ours for epoch in epochs[1:]]
    print(f"plain DDP     {statistics.median(map(rate, theirs)):7.1f} images/s")
    print(f"ours          {statistics.median(map(rate, ours)):7.1f} images/s")
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"ratio         {statistics.median(ratios):7.2f}   ({spread})")
    for name in ("waiting_for_data", "waiting_for_checkpoints"):
        print(f"{name.replace('_', ' '):24}{statistics.median(epoch[name] for epoch in later):.2%}")
    for name, runs in (("plain DDP", theirs), ("ours", ours)):
        last = statistics.median(epochs[-1]["train_loss"] for epochs in runs)
        print(f"{name:12} loss of the last epoch {last:.3f}")


if __name__ == "__main__":
    main()
