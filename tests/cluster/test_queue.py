"""A small job behind a large one on a cluster: the large one makes room, and repeats nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import s3fs

from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.scheduling.records import JobRecords
from tests.support.headless import Place, place, until, write_photos

__all__ = ["place"]

LARGE, SMALL = 2000, 20
MODEL = ["--model", "random:resnet18", "--precision", "float32", "--engine", "eager"]
MAX_SECONDS = 120  # to the first result on a busy machine; the aim is 30, where nothing else runs


def submit(place: Place, photos: Path, output: str) -> str:
    words = ["predict", str(photos), *MODEL, "--output", output, "--cluster", "gpus"]
    begun = place.eagleray(*words, "--detach").stderr
    return begun.split("Job ")[1].split()[0]


class Stages:
    """Notes when each stage of a small job is first seen, in seconds from its submission."""

    def __init__(self, place: Place, large: str) -> None:
        settings = Settings(database_url=place.database)
        self.records = JobRecords(open_database(settings), settings)
        self._store = s3fs.S3FileSystem(
            key="test", secret="test", endpoint_url=place.endpoint, use_listings_cache=False
        )
        self._large = large
        self._begun = time.monotonic()
        self.seen: dict[str, float] = {}

    def watch(self, small: str) -> bool:
        """Look once, and return whether the small job has its results."""
        row, large = self.records.get(small), self.records.get(self._large)
        ended = row.state == JobState.SUCCEEDED
        stages: dict[str, Callable[[], bool]] = {
            "submitted": lambda: True,
            "its process runs": lambda: row.epoch > 0,
            "the large one is asked": lambda: large.yields_to == small,
            "the large one waits": lambda: large.state == JobState.QUEUED,
            "admitted": lambda: row.started is not None,
            "first result": lambda: ended or bool(self._num_results("small")),
            "ended": lambda: ended,
        }
        for name, reached in stages.items():
            if name not in self.seen and reached():
                self.seen[name] = round(time.monotonic() - self._begun, 1)
        return ended

    def _num_results(self, output: str) -> int:
        return len(self._store.glob(f"pictures/{output}/_eagleray/shards/*.parquet"))


def test_a_small_job_does_not_wait_for_a_large_one(place: Place, tmp_path: Path) -> None:
    many = write_photos(tmp_path / "many", LARGE)
    few = write_photos(tmp_path / "few", SMALL)
    with place.head():
        large = submit(place, many, "s3://pictures/large")
        until(lambda: (place.show(large)["done"] or 0) > 0)
        stages = Stages(place, large)
        small = submit(place, few, "s3://pictures/small")
        until(lambda: stages.watch(small), every=0.1)
        behind = stages.records.get(large)
        assert behind.state in (JobState.QUEUED, JobState.RUNNING)
        until(lambda: place.show(large)["state"] == JobState.SUCCEEDED, seconds=400)
    print(f"a job of {SMALL} images behind {LARGE:,} ({behind.num_done:,} done):", stages.seen)
    assert stages.seen["first result"] < MAX_SECONDS
    assert "the large one waits" in stages.seen
    log = place.eagleray("jobs", "logs", large).stderr
    assert log.count("The job has yielded its workers") == 1
    assert log.count("The job goes on.") == 1
    assert "resumes" not in log
    assert "yielded" not in place.eagleray("jobs", "logs", small).stderr
    table = place.rows("s3://pictures/large")
    assert table.num_rows == len(set(table.column("uri").to_pylist())) == LARGE
    assert place.rows("s3://pictures/small").num_rows == SMALL
    assert place.show(large)["attempt"] == 1
