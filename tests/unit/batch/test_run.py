"""An opened job to its committed output, where workers are played or their results are there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import html
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.earlier import read_results
from eagleray.batch.job import Job
from eagleray.batch.run import finish_job
from eagleray.batch.shard_summary import ShardSummary
from eagleray.core.errors import JobFailedError
from eagleray.core.types import OutputFormat
from eagleray.io import storage
from eagleray.sharded.history import list_jobs
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import JobMonitor, read_progress
from tests.support.batch import Killed, dies_at
from tests.support.job_folder import JobFolder
from tests.support.result_files import every_format


@pytest.fixture
def place(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


# --- run --------------------------------------------------------------------------------------


@every_format
def test_a_job_whose_shards_are_there_is_committed_without_a_cluster(
    place: JobFolder, output_format: OutputFormat
) -> None:
    summary = place.run(place.worked(3, 20, format=output_format))
    assert summary.committed_here
    totals = summary.totals
    assert (totals.num_rows, totals.num_ok, totals.num_failed) == (40, 38, 2)
    assert summary.reasons == {"truncated": 2}
    assert sum(summary.labels.values()) == 38
    assert totals.seconds == 3
    assert [Path(file).name for file in summary.files] == [f"part-00000.{output_format}"]
    assert "38 ok + 2 failed" in Path(summary.report).read_text().replace("\n", " ")
    (job,) = list_jobs(place.settings)
    assert (job.state, job.num_done, job.num_failed) == ("succeeded", 40, 2)
    (part,) = read_results(summary.output)
    names = sorted(path.name for path in (place.folder / "images").iterdir())
    assert [Path(uri).name for uri in part.column("uri").to_pylist()] == names


@every_format
def test_a_committed_job_says_the_same_again(place: JobFolder, output_format: OutputFormat) -> None:
    first = place.run(place.worked(3, 20, format=output_format))
    again = place.open(format=output_format)
    assert again.committed is not None
    second = finish_job(again)
    same = dataclasses.replace(
        second, seconds=first.seconds, committed_here=True, first_result_seconds=None
    )
    assert same == first


def test_what_was_skipped_and_chosen_is_said_everywhere(place: JobFolder) -> None:
    place.add_images("_DSC0001.JPG", ".hidden.jpg", "Thumbs.db")
    table = place.folder / "list.csv"
    table.write_text("uri;path\nimages/000.png;x\n")
    inputs = (str(place.folder / "images"), str(table))
    skipped = {"hidden": 1, "system": 1}
    remarks = (
        f"{table}: columns are separated by ';' and not by ','.",
        f"{table}: the locations of the images are those in column 'uri', and not in 'path'; "
        "--column names another.",
        "2 files were skipped: 1 hidden (.hidden.jpg), 1 of an operating system (Thumbs.db).",
    )
    job = place.worked(inputs=inputs)
    assert (job.plan.num_rows, job.plan.remarks, job.plan.skipped) == (42, remarks, skipped)
    summary = place.run(job)
    assert (summary.remarks, summary.skipped) == (remarks, skipped)
    assert json.loads(Path(job.layout.commit).read_text())["skipped"] == skipped
    page = html.unescape(Path(summary.report).read_text())
    assert all(remark in page for remark in remarks)
    assert finish_job(place.open(inputs=inputs)).remarks == remarks
    assert summary.as_json()["skipped"] == skipped
    assert summary.as_json()["remarks"] == remarks


def test_folders_whose_names_are_not_utf8_are_inputs_and_outputs(place: JobFolder) -> None:
    images, out = (os.fsdecode(os.fsencode(place.folder) + name) for name in (b"/i\xe9", b"/o\xe9"))
    (place.folder / "images").rename(images)
    asked = {"inputs": (images,), "output": out}
    summary = place.run(place.worked(**asked))
    assert summary.output == f"{place.folder}/o\\xe9"
    assert Path(out, "_SUCCESS").exists()
    (rows,) = read_results(summary.output)
    assert rows.column("uri")[0].as_py() == f"{place.folder}/i\\xe9/000.png"
    assert (
        place.open(**asked).committed
        == place.open(output=summary.output, inputs=(f"{place.folder}/i\\xe9",)).committed
    )
    assert "i\\xe9" in Path(summary.report.replace("\\xe9", "\udce9")).read_text()


def test_results_can_be_inputs_again_and_again(place: JobFolder) -> None:
    table = place.folder / "list.csv"
    table.write_text("path,label\nimages/000.png,mine\n")
    asked: dict[str, Any] = {"inputs": (str(table),)}
    for number in range(3):
        out = str(place.folder / f"out-{number}")
        place.run(place.worked(output=out, **asked))
        asked = {"inputs": (out,)}
    (rows,) = read_results(out)
    found = {name: rows.column(name)[0].as_py() for name in rows.column_names if "label" in name}
    assert found["input_label"] == "mine"
    assert {"input_label", "input_label_2", "input_label_3"} <= set(found)
    assert not any("input_input" in name for name in rows.column_names)


def test_a_run_that_finds_the_commit_of_another_says_so(place: JobFolder) -> None:
    job = place.worked(3)
    assert place.run(job).committed_here
    late = place.run(job)
    assert not late.committed_here
    assert late.totals.num_failed == 1


def test_a_damaged_shard_is_reported_by_every_reader(place: JobFolder) -> None:
    job = place.worked()
    storage.put_atomic(job.layout.shard(1), b"damaged")
    with pytest.raises(JobFailedError, match="shard 1 was damaged"):
        place.run(job)
    progress = read_progress(job.layout)
    assert progress is not None
    assert progress.state == "failed"
    assert "shard 1 was damaged" in progress.message


@every_format
def test_results_go_into_a_sql_table_with_their_types(
    place: JobFolder, output_format: OutputFormat
) -> None:
    table = place.folder / "list.csv"
    lines = [f"{place.folder}/images/{n:03d}.png,00{n},2026-01-0{n}" for n in range(1, 4)]
    table.write_text("\n".join(["uri,label,when", *lines]))
    database = place.folder / "results.db"
    asked: dict[str, Any] = {
        "inputs": (str(table),),
        "sql": f"sqlite:///{database}",
        "format": output_format,
    }
    job = place.worked(1, **asked)
    assert place.run(job).sql_rows == 3
    assert finish_job(place.open(**asked)).sql_rows == 3  # once more changes nothing
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute(
            'SELECT "row", input_label, "when", status, score, labels FROM predictions ORDER BY 1'
        ).fetchall()
    assert found == [
        (0, "001", "2026-01-01", "ok", 0.5, json.dumps(["zero"])),
        (1, "002", "2026-01-02", "failed", None, None),
        (2, "003", "2026-01-03", "ok", pytest.approx(0.52), json.dumps(["two"])),
    ]


# --- on the way -------------------------------------------------------------------------------


def test_a_job_counts_what_is_done(place: JobFolder) -> None:
    summary = place.run_with(place.open(), 3, 39)
    assert place.reporter.advanced == [(0, 0), (16, 1), (16, 0), (8, 1)]
    assert (summary.totals.num_rows, summary.totals.num_failed) == (40, 2)
    assert summary.first_result_seconds is not None
    progress = read_progress(OutputLayout(summary.output))
    assert progress is not None
    assert (progress.state, progress.num_done, progress.num_failed) == ("succeeded", 40, 2)


def test_a_job_begins_with_a_small_shard_and_ends_with_small_ones(place: JobFolder) -> None:
    place.add_images(*(f"more-{number:04d}.png" for number in range(800)))
    place.run_with(place.open(workers="2"))
    sizes = [count for count, _ in place.reporter.advanced[1:]]
    assert sizes[:2] == [16, 16]
    growing = sizes[3:]  # the one before holds what was left
    assert growing == sorted(growing, reverse=True)
    assert growing[0] > growing[-1] == 16


def test_a_rotten_input_stops_a_job_and_stops_it_again(place: JobFolder) -> None:
    job = place.open(max_failures="5%")
    for shards_done in (2, 2):
        with pytest.raises(JobFailedError, match="3 of 32 images failed so far"):
            place.run_with(job, 3, 17, 18)
        assert set(job.layout.finished_shards()) == set(range(shards_done))
    assert list_jobs(place.settings)[0].state == "failed"
    more = place.open(max_failures="10%")
    summary = place.run_with(more, 3, 17, 18)
    assert summary.committed_here
    assert summary.totals.num_failed == 3


def test_a_limit_that_the_last_shard_exceeds_still_keeps_a_job_from_its_commit(
    place: JobFolder,
) -> None:
    job = place.open(max_failures="0")
    for _ in range(2):
        with pytest.raises(JobFailedError, match="1 of 40 images failed so far"):
            place.run_with(job, 39)
    assert place.open(max_failures="0").committed is None


def test_a_cancelled_job_resumes_where_it_was(
    place: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = place.open()
    add = JobMonitor.add

    def cancelled(self: JobMonitor, summary: ShardSummary) -> None:
        add(self, summary)
        self.cancelled = True

    with monkeypatch.context() as patch:
        patch.setattr(JobMonitor, "add", cancelled)
        with pytest.raises(JobFailedError, match="was cancelled after 16 images"):
            place.run_with(job, 3)
    assert list_jobs(place.settings)[0].state == "cancelled"
    assert set(job.layout.finished_shards()) == {0}
    place.reporter.advanced.clear()
    summary = place.run_with(place.open(), 3)
    assert place.reporter.advanced == [(16, 1), (16, 0), (8, 0)]
    assert summary.totals.num_failed == 1


def test_an_old_mark_does_not_cancel_the_next_run(place: JobFolder) -> None:
    job = place.open()
    storage.put_atomic(job.layout.cancel, b"")
    assert place.run_with(job).committed_here


def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(
    place: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = place.open()
    put_if_absent = storage.put_if_absent

    def full(location: str, content: bytes) -> bool:
        if "part-" in location:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put_if_absent(location, content)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_if_absent", full)
        with pytest.raises(JobFailedError, match=r"No space left on device[^\n]+is kept"):
            place.run_with(job)
    assert set(job.layout.finished_shards()) == {0, 1, 2}
    assert place.run(place.open()).committed_here


# --- death ------------------------------------------------------------------------------------


def test_a_run_that_dies_before_any_change_is_finished_by_the_next(place: JobFolder) -> None:
    job = place.worked(3, 20)
    pristine = place.folder / "pristine"
    shutil.copytree(place.folder / "out", pristine)
    call = 0
    while True:
        shutil.rmtree(place.folder / "out")
        shutil.copytree(pristine, place.folder / "out")
        died = dies_in_run(place, job, call)
        again = place.open()
        summary = finish_job(again) if again.committed is not None else place.run(again)
        assert (summary.totals.num_ok, summary.totals.num_failed) == (38, 2)
        (part,) = read_results(summary.output)
        assert part.column("row").to_pylist() == list(range(40))
        assert (place.folder / "out" / "_SUCCESS").exists()
        assert set(again.layout.finished_shards()) == set()
        if not died:
            break
        call += 1
    assert call == 8


def dies_in_run(place: JobFolder, job: Job, call: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        dies_at(patch, call, after=False)
        try:
            place.run(job)
        except Killed:
            return True
    return False
