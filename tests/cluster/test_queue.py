"""A small job behind a large one on a cluster: the large one makes room, and repeats nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

from eagleray.core.job_state import JobState
from tests.support.headless import Place, place, until, write_photos

__all__ = ["place"]

LARGE, SMALL = 2000, 20
MODEL = ["--model", "random:resnet18", "--precision", "float32", "--engine", "eager"]
MAX_SECONDS = 60  # the aim is 30, on a machine that does nothing else


def submit(place: Place, photos: Path, output: str) -> str:
    words = ["predict", str(photos), *MODEL, "--output", output, "--cluster", "gpus"]
    begun = place.eagleray(*words, "--detach").stderr
    return begun.split("Job ")[1].split()[0]


def test_a_small_job_does_not_wait_for_a_large_one(place: Place, tmp_path: Path) -> None:
    many = write_photos(tmp_path / "many", LARGE)
    few = write_photos(tmp_path / "few", SMALL)
    with place.head():
        large = submit(place, many, "s3://pictures/large")
        until(lambda: (place.show(large)["done"] or 0) > 0)
        begun = time.monotonic()
        small = submit(place, few, "s3://pictures/small")
        seen = set()

        def ended() -> bool:
            listed = json.loads(place.eagleray("jobs", "list", "--json").stdout)
            jobs = {job["job"]: job for job in listed}
            seen.add((jobs[large]["state"], jobs[small]["position"]))
            return bool(jobs[small]["state"] == JobState.SUCCEEDED)

        until(ended)
        seconds = time.monotonic() - begun
        behind = place.show(large)
        assert behind["state"] in (JobState.QUEUED, JobState.RUNNING)
        until(lambda: place.show(large)["state"] == JobState.SUCCEEDED, seconds=400)
    print(f"the small job took {seconds:.1f} s behind {LARGE:,} images ({behind['done']:,} done)")
    assert seconds < MAX_SECONDS
    assert (JobState.QUEUED, None) in seen, "the large one did not wait for the small one"
    log = place.eagleray("jobs", "logs", large).stderr
    assert log.count("The job has yielded its workers") == 1
    assert log.count("The job goes on.") == 1
    assert "resumes" not in log
    table = place.rows("s3://pictures/large")
    assert table.num_rows == len(set(table.column("uri").to_pylist())) == LARGE
    assert place.rows("s3://pictures/small").num_rows == SMALL
    assert place.show(large)["attempt"] == 1
