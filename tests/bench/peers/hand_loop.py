"""Measures the limit of the machine: one process per core, with our decode and our forward pass.

    python -m tests.bench.peers.hand_loop --images FOLDER --weights FILE --output FOLDER

It is no alternative for ten million images, as it has no retries, no manifest and no handling of
bad images. It shows how much of the machine these cost us. Its steady state, images a second once
every process has its converted network, is written to `_steady.json` in the output. WEIGHTS is the
`model.safetensors` of a package.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from eagleray.imaging import decode
from eagleray.inference.predictor import Predictor
from eagleray.models.package import read_package
from tests.bench.peers import STEADY_FILE, PeerArguments, parse_arguments

LabelledScore = tuple[str, str, float]


def main(arguments: PeerArguments) -> None:
    package = arguments.weights.parent
    _predictor(package)  # converts, unless the cache has it
    num_processes = os.cpu_count() or 1
    paths = sorted(str(path) for path in arguments.images.iterdir())
    shares = [paths[start::num_processes] for start in range(num_processes)]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(num_processes, spawn) as pool:
        all_ready = manager.Barrier(num_processes)
        calls = [pool.submit(_work, share, package, all_ready) for share in shares]
        results = [call.result() for call in calls]
    steady = sum(len(predictions) / seconds for predictions, seconds in results)
    rows = [prediction for predictions, _ in results for prediction in predictions]
    columns = dict(zip(("path", "label", "score"), zip(*rows, strict=True), strict=True))
    arguments.output.mkdir(parents=True)
    pyarrow.parquet.write_table(pa.table(columns), arguments.output / "part-0.parquet")
    (arguments.output / STEADY_FILE).write_text(json.dumps({"images_per_second": steady}))


def _predictor(package: Path) -> Predictor:
    return Predictor(read_package(str(package)), device="cpu", engine="openvino", num_threads=1)


def _work(
    paths: Sequence[str], package: Path, all_ready: Barrier
) -> tuple[list[LabelledScore], float]:
    """Classify a share of the photographs; return the predictions and the seconds."""
    cv2.setNumThreads(1)
    predictor = _predictor(package)
    list(_classify(predictor, paths[: predictor.plan.batch_size]))  # the first pass allocates
    all_ready.wait()
    started = time.perf_counter()
    predictions = list(_classify(predictor, paths))
    return predictions, time.perf_counter() - started


def _classify(predictor: Predictor, paths: Sequence[str]) -> Iterator[LabelledScore]:
    labels, contract = predictor.task.labels, predictor.package.contract
    size = predictor.plan.batch_size
    for start in range(0, len(paths), size):
        batch = paths[start : start + size]
        pixels = [decode(Path(path).read_bytes(), contract).pixels for path in batch]
        outputs = predictor.forward(np.stack(pixels))
        for path, row in zip(batch, outputs, strict=True):
            best = int(row.argmax())
            yield path, labels[best], float(row[best])


if __name__ == "__main__":
    main(parse_arguments(__doc__))
