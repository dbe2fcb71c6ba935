"""Jobs that yield their workers on a real Ray: nothing runs meanwhile, and no shard runs twice."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from eagleray.batch import pipeline
from eagleray.batch.run import run_job
from eagleray.batch.spec import PredictSpec
from eagleray.core.job_state import JobState
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.core.yielding import YieldSignal
from eagleray.models.package import write_package
from eagleray.packing.job import open_pack, run_pack
from eagleray.packing.pipeline import pack_shards
from eagleray.packing.spec import PackSpec
from eagleray.sharded.history import list_jobs, pause_job, resume_job
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import read_progress
from tests.support.images import encode, photo
from tests.support.job_folder import open_predict
from tests.support.models import small_package
from tests.support.noting_worker import (
    NOTES,
    NotingWorker,
    note_resumed,
    notes,
    pack_and_wait,
)
from tests.support.processes import family, titled
from tests.support.reporting import RecordingReporter

NUM_IMAGES = 400
_SECONDS_TO_END = 180.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        (folder / f"{number:03d}.jpg").write_bytes(encode(photo(40, 40, seed=number), "jpeg"))
    return folder


@pytest.fixture
def request_of(tmp_path: Path, images: Path) -> PredictSpec:
    write_package(small_package(), str(tmp_path / "model"))
    return PredictSpec(
        inputs=(str(images),), model=str(tmp_path / "model"), output=str(tmp_path / "out")
    )


def num_workers() -> int:
    return len(titled(family(os.getpid()), "ray::MapWorker"))


def await_that(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_END
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Yields(RecordingReporter):
    """Has a job yield after its first shard, and looks around while it waits."""

    def __init__(self, output: str, ask: Callable[[], None], let_go: Callable[[], None]) -> None:
        super().__init__()
        self._output, self._ask, self._let_go = output, ask, let_go
        self.num_yields = 0
        self.done_meanwhile = -1

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        super().advance(count, failed=failed, note=note)
        if count and not self.num_yields:
            self._ask()

    def line(self, text: str) -> None:
        super().line(text)
        if "waits for its turn" not in text:
            return
        import ray

        self.num_yields += 1
        layout = OutputLayout(self._output)
        progress = read_progress(layout)
        assert progress is not None
        assert progress.state == JobState.YIELDED
        await_that(lambda: num_workers() == 0)
        cpus = ray.cluster_resources()["CPU"]
        await_that(lambda: ray.available_resources().get("CPU") == cpus)
        done = set(layout.finished_shards())
        self.done_meanwhile = progress.num_done
        assert 0 < progress.num_done < NUM_IMAGES
        time.sleep(0.3)  # for work that would go on
        assert set(layout.finished_shards()) == done
        note_resumed(self._output)
        self._let_go()


def test_prediction_yields_and_goes_on_without_doing_a_shard_twice(
    cluster: Cluster, request_of: PredictSpec
) -> None:
    signal = YieldSignal()
    reporter = Yields(request_of.output, signal.request, signal.clear)
    job = open_predict(request_of, Settings(), reporter)
    run_shards = functools.partial(pipeline.run_shards, worker=NotingWorker)
    run_job(job, lambda: cluster, reporter, yield_signal=signal, run_shards=run_shards)
    assert reporter.num_yields == 1
    table = pyarrow.parquet.read_table(request_of.output)
    assert table.column("row").to_pylist() == list(range(NUM_IMAGES))
    assert table.column("status").to_pylist() == ["ok"] * NUM_IMAGES
    done = notes(Path(f"{request_of.output}.{NOTES}"))
    assert sorted(map(int, done)) == list(range(job.plan.num_shards))


def test_a_job_that_a_person_pauses_is_shown_as_yielded_and_resumed(
    cluster: Cluster, request_of: PredictSpec
) -> None:
    settings = Settings()

    def pause() -> None:
        pause_job(list_jobs(settings)[0])
        await_that(lambda: signal.requested)

    def resume() -> None:
        assert list_jobs(settings)[0].state == JobState.YIELDED
        resume_job(list_jobs(settings)[0])

    signal = YieldSignal()
    reporter = Yields(request_of.output, pause, resume)
    job = open_predict(request_of, settings, reporter)
    run_shards = functools.partial(pipeline.run_shards, worker=NotingWorker)
    summary = run_job(job, lambda: cluster, reporter, yield_signal=signal, run_shards=run_shards)
    assert (reporter.num_yields, summary.totals.num_ok) == (1, NUM_IMAGES)
    assert list_jobs(settings)[0].state == JobState.SUCCEEDED


def test_packing_yields_too(cluster: Cluster, tmp_path: Path, images: Path) -> None:
    signal = YieldSignal()
    request = PackSpec(inputs=(str(images),), output=str(tmp_path / "packed"))
    small = request.model_copy(update={"file_size": "2KB"})  # smaller than users may
    reporter = Yields(request.output, signal.request, signal.clear)
    job = open_pack(small, Settings(), reporter)
    assert job.plan.num_shards > 20
    pack = functools.partial(pack_shards, pack=pack_and_wait)
    summary = run_pack(job, lambda: cluster, reporter, yield_signal=signal, pack_shards=pack)
    assert (reporter.num_yields, summary.committed.num_ok) == (1, NUM_IMAGES)
