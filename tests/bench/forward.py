"""Forward passes of every engine and precision on this machine: speed, start, memory, difference.

    make bench-forward PHOTOS=folder
    python -m tests.bench.forward --photos FOLDER resnet18 resnet50

Each engine runs in a process of its own, on all cores, over decoded photographs in memory, with
nothing cached at first. The rounds of all engines are interleaved; speeds are medians. The
reference is PyTorch in eager float32, with the same random weights, scaled so that the logits
spread as those of trained networks do.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from tests.bench.batch import machine
from tests.bench.folders import photos_of
from tests.bench.peers.weights import write_weights
from tests.bench.quantized import write_int8

NETWORKS = ("resnet18", "resnet50", "mobilenet_v3_large", "timm/tf_efficientnet_lite0", "vit_b_16")
ENGINES = ("eager float32", "eager bfloat16", "openvino float32", "openvino bfloat16")
INT8 = "openvino int8"
REFERENCE = ENGINES[0]
NUM_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Run:
    """A process that runs one network on one engine."""

    process: subprocess.Popen[str]
    outputs: Path

    def ask(self, line: str) -> dict[str, Any]:
        """Send a command, and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, help="Internal: package, engine and file of outputs.")
    options = parser.parse_args()
    if options.child is not None:
        serve_rounds(options.photos, *options.child)
        return
    print(f"{machine()}; {NUM_IMAGES} photographs, median of {options.rounds} rounds\n")
    columns = ["network", "engine", "images/s", "to reference", "ready after", "again after"]
    columns += ["memory", "largest difference", "same label"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for network in options.networks:
        with tempfile.TemporaryDirectory(prefix="bench-forward-") as folder:
            compare(network, options, Path(folder))


def compare(network: str, options: argparse.Namespace, folder: Path) -> None:
    photos = photos_of(options.photos)[:NUM_IMAGES]
    weights = write_weights(photos, folder / "float", network=network)
    int8 = write_int8(weights, options.photos.resolve(), folder / "int8")
    packages = {**dict.fromkeys(ENGINES, weights.package), INT8: int8}
    runs: dict[str, Run] = {}
    ready: dict[str, dict[str, Any]] = {}
    again: dict[str, float] = {}
    for engine, package in packages.items():  # one after the other, so that starts are not mixed
        for _ in range(2):
            runs[engine] = start(options.photos, package, engine, folder)
            answer = runs[engine].ask("start")
            again[engine] = answer["seconds"]
            ready.setdefault(engine, answer)
            if _ == 0:
                runs[engine].process.kill()
                runs[engine].process.wait()
    speeds: dict[str, list[float]] = {engine: [] for engine in runs}
    for _ in range(options.rounds):
        for engine, run in runs.items():
            speeds[engine].append(run.ask("round")["images_per_second"])
    memory = {engine: run.ask("memory")["bytes"] for engine, run in runs.items()}
    for run in runs.values():
        run.process.kill()
        run.process.wait()
    outputs = {engine: np.load(run.outputs) for engine, run in runs.items()}
    reference = outputs[REFERENCE]
    base = statistics.median(speeds[REFERENCE])
    for engine, found in outputs.items():
        speed = statistics.median(speeds[engine])
        same = int((found.argmax(1) == reference.argmax(1)).sum())
        print(
            f"| {network} | {engine} | {speed:.1f} | {speed / base:.2f} "
            f"| {ready[engine]['seconds']:.1f} s | {again[engine]:.1f} s "
            f"| {memory[engine] / 2**20:,.0f} MiB | {np.abs(found - reference).max():.2g} "
            f"| {same} of {len(reference)} |",
            flush=True,
        )


def start(photos: Path, package: Path, engine: str, folder: Path) -> Run:
    name = engine.replace(" ", "-")
    outputs = folder / f"{name}.npy"
    command = [sys.executable, "-m", "tests.bench.forward", "--photos", str(photos)]
    process = subprocess.Popen(
        [*command, "--child", str(package), engine, str(outputs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EAGLERAY_HOME": str(folder / f"home-{name}")},
    )
    return Run(process, outputs)


# --- the process of one engine ----------------------------------------------------------------


def serve_rounds(photos: Path, package: str, engine: str, outputs: str) -> None:
    """Prepare an engine, and run a round for each line of standard input."""
    input()
    started = time.perf_counter()
    from eagleray.core.system import num_usable_cores
    from eagleray.inference.predictor import Predictor
    from eagleray.models.package import read_package

    name, precision = engine.split()
    predictor = Predictor(
        read_package(package),
        device="cpu",
        engine=name,
        precision="auto" if precision == "int8" else precision,  # type: ignore[arg-type]
        num_threads=num_usable_cores(),
    )
    pixels = decoded(predictor, photos)
    predictor.forward(pixels[:1])
    answer(seconds=time.perf_counter() - started)
    np.save(outputs, predictor.forward(pixels))
    for line in sys.stdin:
        if line.strip() == "memory":
            answer(bytes=psutil.Process().memory_info().rss)
            continue
        begun = time.perf_counter()
        predictor.forward(pixels)
        answer(images_per_second=len(pixels) / (time.perf_counter() - begun))


def decoded(predictor: Any, photos: Path) -> npt.NDArray[np.uint8]:
    contract = predictor.package.contract
    from eagleray.imaging import decode

    chosen = photos_of(photos)[:NUM_IMAGES]
    return np.stack([decode(photo.read_bytes(), contract).pixels for photo in chosen])


def answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
