"""Which jobs were started here, and what has become of each."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.sharded.history import JobStatus, cancel_job, find_job, list_jobs, record_job
from tests.support.batch import Output, output
from tests.support.models import settings_in


def recorded(tmp_path: Path, name: str = "out", **overrides: Any) -> tuple[Output, Settings]:
    made = output(tmp_path / name, **overrides)
    settings = settings_in(tmp_path)
    record_job(settings, made.plan, made.layout.location)
    return made, settings


def show_life(made: Output, **overrides: Any) -> None:
    parts: dict[str, Any] = {
        "job_id": made.plan.job_id,
        "state": "running",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time(),
        "updated": time.time(),
        "num_rows": 40,
        "num_done": 16,
        "num_failed": 2,
        "images_per_second": 8.0,
        "seconds_left": 3.0,
    }
    content = json.dumps({**parts, **overrides}).encode()
    storage.put_atomic(made.layout.progress, content)


def only(settings: Settings) -> JobStatus:
    (job,) = list_jobs(settings)
    return job


def pid_of_the_dead() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_home_without_jobs_has_none(tmp_path: Path) -> None:
    assert list_jobs(settings_in(tmp_path)) == []


def test_a_running_job_is_shown_as_its_output_shows_it(tmp_path: Path) -> None:
    made, settings = recorded(tmp_path)
    show_life(made)
    job = only(settings)
    assert (job.job_id, job.output, job.state) == (
        made.plan.job_id,
        str(tmp_path / "out"),
        "running",
    )
    assert (job.num_rows, job.num_done, job.num_failed) == (40, 16, 2)
    assert job.plan is not None
    assert job.plan.describe() == made.plan.describe()


def test_a_committed_job_is_done_at_any_last_heartbeat(tmp_path: Path) -> None:
    made, settings = recorded(tmp_path, failed={1, 2, 3})
    show_life(made)
    made.commit()
    job = only(settings)
    assert (job.state, job.num_done, job.num_failed) == ("succeeded", 40, 3)


OTHER_HOST = "another-machine"


@pytest.mark.parametrize(
    ("life", "state"),
    [
        ({}, "running"),
        ({"pid": None}, "stopped"),
        ({"state": "committing"}, "stopped"),  # of the version before, which this one cannot read
        ({"updated": -100}, "stopped"),
        ({"host": OTHER_HOST}, "running"),
        ({"host": OTHER_HOST, "pid": None}, "running"),
        ({"host": OTHER_HOST, "updated": -100}, "stopped"),
        ({"pid": 1, "updated": -5}, "running"),  # somebody else's process
        ({"state": "failed", "pid": None}, "failed"),
        ({"state": "cancelled", "updated": -(10**6)}, "cancelled"),
        ({"state": "stopped"}, "stopped"),
    ],
    ids=str,
)
def test_a_job_runs_as_long_as_it_shows_signs_of_life(
    tmp_path: Path, life: dict[str, Any], state: str
) -> None:
    made, settings = recorded(tmp_path)
    if "pid" in life and life["pid"] is None:
        life = {**life, "pid": pid_of_the_dead()}
    if "updated" in life:
        life = {**life, "updated": time.time() + life["updated"]}
    show_life(made, **life)
    assert only(settings).state == state


def test_a_job_that_never_gave_a_sign_is_stopped(tmp_path: Path) -> None:
    _, settings = recorded(tmp_path)
    job = only(settings)
    assert (job.state, job.num_rows, job.num_done) == ("stopped", 40, 0)


def test_an_output_whose_storage_refuses_is_unknown_and_says_why(tmp_path: Path) -> None:
    made, settings = recorded(tmp_path)
    storage.put_atomic(made.layout.commit, b"{}")
    job = only(settings)
    assert (job.state, job.plan) == ("unknown", None)
    assert "was not written by this version" in job.message
    with pytest.raises(InputError, match="is unknown; only a running one"):
        cancel_job(job)


def test_a_record_says_how_its_output_is_reached(tmp_path: Path) -> None:
    made = output(tmp_path / "out")
    settings = settings_in(tmp_path)
    reached = storage.S3Options(endpoint="http://127.0.0.1:9", region="eu-central-1")
    record_job(settings, made.plan, made.layout.location, reached)
    seen: list[object] = []
    read_bytes = storage.read_bytes

    def read(location: str) -> bytes:
        seen.append(fsspec.config.conf.get("s3"))
        return read_bytes(location)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_bytes", read)
        assert only(settings).s3 == reached
    assert seen[:1] == [
        {"endpoint_url": "http://127.0.0.1:9", "client_kwargs": {"region_name": "eu-central-1"}}
    ]
    assert "s3" not in fsspec.config.conf


def test_an_output_that_was_removed_is_unknown(tmp_path: Path) -> None:
    made, settings = recorded(tmp_path)
    made.commit()
    shutil.rmtree(made.folder)
    job = only(settings)
    assert (job.state, job.plan, job.num_rows) == ("unknown", None, 0)
    assert find_job(settings, made.plan.job_id).message == "The output is gone."


@pytest.mark.parametrize("name", ["_manifest.json", "_eagleray/plan.json"])
def test_an_output_that_cannot_be_understood_does_not_hide_the_other_jobs(
    tmp_path: Path, name: str
) -> None:
    made, settings = recorded(tmp_path)
    recorded(tmp_path, "other")
    (made.folder / name).write_text("{}")
    assert sorted(job.state for job in list_jobs(settings)) == ["stopped", "unknown"]


def test_newest_first_and_strange_files_are_passed_over(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    for month in (1, 3, 2):
        made = output(tmp_path / str(month))
        plan = made.plan.model_copy(update={"created": f"2026-0{month}-01T00:00:00+00:00"})
        storage.put_atomic(made.layout.plan, plan.model_dump_json().encode())
        record_job(settings, plan, made.layout.location)
        record_job(settings, plan, made.layout.location)
    (settings.home_folder / "jobs" / "notes.json").write_text("not of ours")
    assert [Path(job.output).name for job in list_jobs(settings)] == ["3", "2", "1"]


# --- names ------------------------------------------------------------------------------------


def test_a_job_is_found_by_its_id_the_beginning_of_it_and_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, settings = recorded(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (made.plan.job_id, made.plan.job_id[:5], str(made.folder), "out", "out/", "./out"):
        assert find_job(settings, name).job_id == made.plan.job_id


def test_a_beginning_of_several_is_one_sentence(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    for name in ("abc1", "abc2"):
        made = output(tmp_path / name)
        record_job(settings, made.plan.model_copy(update={"job_id": name}), made.layout.location)
    with pytest.raises(InputError, match="begins the names of 2 jobs: abc1, abc2"):
        find_job(settings, "abc")
    assert find_job(settings, "abc1").job_id == "abc1"


def test_an_output_that_was_used_twice_names_the_job_that_is_there(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    for month in (1, 2):
        made = output(tmp_path / "out")
        plan = made.plan.model_copy(update={"created": f"2026-0{month}-01T00:00:00+00:00"})
        storage.put_atomic(made.layout.plan, plan.model_dump_json().encode())
        record_job(settings, plan, made.layout.location)
        if month == 1:
            shutil.rmtree(made.folder)
    assert find_job(settings, str(tmp_path / "out")).job_id == plan.job_id
    assert sorted(job.state for job in list_jobs(settings)) == ["stopped", "unknown"]


def test_a_job_of_another_home_is_found_by_its_output(tmp_path: Path) -> None:
    made = output(tmp_path / "out")
    job = find_job(settings_in(tmp_path, "other-home"), str(made.folder))
    assert (job.job_id, job.num_rows) == (made.plan.job_id, 40)


def test_an_unknown_name_is_one_sentence_with_near_ones(tmp_path: Path) -> None:
    made, settings = recorded(tmp_path)
    near = made.plan.job_id[1:]
    with pytest.raises(UnknownNameError, match=f"Nearest: {made.plan.job_id}"):
        find_job(settings, near)


# --- cancel -----------------------------------------------------------------------------------


def test_a_running_job_is_told_to_stop(tmp_path: Path) -> None:
    made, settings = recorded(tmp_path)
    show_life(made)
    cancel_job(only(settings))
    assert Path(made.layout.cancel).exists()


@pytest.mark.parametrize("state", ["failed", "cancelled", "stopped", "succeeded"])
def test_only_a_running_job_is_cancelled(tmp_path: Path, state: str) -> None:
    made, settings = recorded(tmp_path)
    show_life(made, state=state)
    with pytest.raises(InputError, match=f"is {state}; only a running one is cancelled"):
        cancel_job(only(settings))
    assert not Path(made.layout.cancel).exists()
