"""A part of `make chaos` that fits among the tests: the commit's crash points, and dead workers."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from eagleray.batch import pipeline
from eagleray.batch.run import run_job
from eagleray.batch.spec import PredictSpec
from eagleray.batch.worker import ShardWorker
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.core.types import TOLERANCE
from eagleray.inference.predictor import Predictor
from eagleray.models.package import read_package, write_package
from tests.support.images import encode, photo
from tests.support.job_folder import open_predict
from tests.support.killers import killer_jpeg
from tests.support.marked_worker import MarkedImagesKill
from tests.support.models import small_package
from tests.support.processes import family, kill, titled
from tests.support.reporting import RecordingReporter

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 90


@pytest.fixture
def model(tmp_path: Path) -> str:
    write_package(small_package(), str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number:03d}.jpg").write_bytes(encode(photo(40, 40, seed=number), "jpeg"))
    return folder


class KillsAWorker(RecordingReporter):
    """Kills a worker of ours when the first shard is done."""

    def __init__(self) -> None:
        super().__init__()
        self.num_killed = 0

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        if count and not self.num_killed:
            workers = titled(family(os.getpid()), "ray::MapWorker")
            newest = max(workers, key=lambda worker: worker.create_time())
            self.num_killed += kill(newest)  # an older one may be another test's


def predict(
    cluster: Cluster,
    request: PredictSpec,
    reporter: RecordingReporter,
    worker: type[ShardWorker] = ShardWorker,
) -> list[dict[str, object]]:
    """Run a job and return its table, without the times."""
    job = open_predict(request, Settings(), reporter)
    run_shards = functools.partial(pipeline.run_shards, worker=worker)
    run_job(job, lambda: cluster, reporter, run_shards=run_shards)
    table = pyarrow.parquet.read_table(request.output).drop_columns(["milliseconds"])
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def test_no_moment_of_a_commit_loses_or_doubles_a_row(tmp_path: Path) -> None:
    """A driver dies before, inside and after every call from the first result file on."""
    counts = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tests.chaos", "--only", "commit", "--storage", "disk"]
    answer = subprocess.run(
        [*command, "--quick", "--json", str(counts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (tally,) = json.loads(counts.read_text())
    assert tally["kills"] >= 30
    assert tally["outputs"] * 60 == tally["rows"] >= 30 * 60
    assert (tally["lost"], tally["doubled"], tally["different"]) == (0, 0, 0)
    assert tally["reads"] > tally["kills"]
    assert (tally["partial"], tally["naive_marked_partial"]) == (0, 0)


def test_a_killed_worker_is_replaced_and_every_image_predicted(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    bar = KillsAWorker()
    request = PredictSpec(
        inputs=(str(images),), model=model, output=str(tmp_path / "out"), precision="float32"
    )
    rows = predict(cluster, request, bar)
    assert bar.num_killed == 1
    assert [row["row"] for row in rows] == list(range(NUM_IMAGES))
    predictor = Predictor(read_package(model), precision="float32")
    outcomes = predictor.predict([file.read_bytes() for file in sorted(images.iterdir())])
    for row, outcome in zip(rows, outcomes, strict=True):
        assert outcome.prediction is not None
        assert row["label"] == outcome.prediction.label
        assert row["score"] == pytest.approx(outcome.prediction.score, abs=TOLERANCE["float32"])


def test_images_that_kill_a_worker_are_named_and_the_others_are_predicted(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    killers = {"SEGV": "decoder_crash", "BAD_ALLOC": "out_of_memory", "HANG": "timeout"}
    for kind in killers:
        picture = np.zeros((40, 40, 3), np.uint8)
        (images / f"040-{kind}.jpg").write_bytes(killer_jpeg(kind, picture))
    request = PredictSpec(
        inputs=(str(images),), model=model, output=str(tmp_path / "out"), image_timeout=2.0
    )
    rows = predict(cluster, request, RecordingReporter(), MarkedImagesKill)
    failed = {Path(str(row["uri"])).stem: row["reason"] for row in rows if row["reason"]}
    assert failed == {f"040-{kind}": reason for kind, reason in killers.items()}
    assert [row["row"] for row in rows] == list(range(NUM_IMAGES + len(killers)))
