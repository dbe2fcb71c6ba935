"""A job from its request to its committed output, where every shard has its result already."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import html
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.earlier import read_results
from eagleray.batch.job import Job, open_job
from eagleray.batch.run import JobSummary, finish_job, run_job
from eagleray.batch.shard_summary import ShardSummary, decode_shard
from eagleray.batch.spec import PredictSpec
from eagleray.core.errors import JobFailedError, OutputExistsError, UnknownNameError, UserError
from eagleray.core.ray_session import Cluster
from eagleray.core.types import OutputFormat
from eagleray.io import storage
from eagleray.models.package import write_package
from eagleray.sharded.history import list_jobs
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import JobMonitor, read_progress
from tests.support.batch import Killed, Output, dies_at
from tests.support.images import encode, photo
from tests.support.models import settings_in, small_package
from tests.support.reporting import RecordingReporter
from tests.unit.batch.test_results import every_format


class Place:
    """A folder with a model, images, and an output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = settings_in(folder)
        self.reporter = RecordingReporter()
        write_package(small_package(), str(folder / "model"))
        self.add_images("a b.png", "ü%20.png", *(f"{number:03d}.png" for number in range(38)))

    def add_images(self, *names: str) -> None:
        (self.folder / "images").mkdir(exist_ok=True)
        for name in names:
            (self.folder / "images" / name).write_bytes(encode(photo(8, 8)))

    def request(self, **overrides: Any) -> PredictSpec:
        parts: dict[str, Any] = {
            "inputs": (str(self.folder / "images"),),
            "model": str(self.folder / "model"),
            "output": str(self.folder / "out"),
        }
        return PredictSpec(**{**parts, **overrides})

    def open(self, **overrides: Any) -> Job:
        return open_job(self.request(**overrides), self.settings, self.reporter)

    def run_with(self, job: Job, *failed: int) -> JobSummary:
        """Run a job whose workers answer without any model, shard after shard."""
        made = Output(job.layout, job.plan, job.model, failed)

        def work(pending: list[int], *_: object) -> Iterator[ShardSummary]:
            for shard in pending:
                made.put_shards([shard])
                yield decode_shard(storage.read_bytes(job.layout.shard(shard)))[1]

        cluster = Cluster(2, 0, embedded=True)
        return run_job(job, lambda: cluster, self.reporter, run_shards=work)

    def worked(self, *failed: int, **overrides: Any) -> Job:
        """Open a job and do what its workers would do."""
        job = self.open(**overrides)
        Output(job.layout, job.plan, job.model, failed).put_shards()
        return job

    def run(self, job: Job) -> JobSummary:
        return run_job(job, no_cluster, self.reporter)


def no_cluster() -> Cluster:
    raise AssertionError("every shard has its result")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- open -------------------------------------------------------------------------------------


def test_a_job_is_opened_again_with_the_inputs_of_the_first_time(place: Place) -> None:
    first = place.open()
    place.add_images("later.png")
    again = place.open()
    assert again.plan == first.plan
    assert again.plan.num_rows == 40
    assert again.committed is None
    assert [job.job_id for job in list_jobs(place.settings)] == [first.plan.job_id]


def test_an_output_that_holds_anything_else_is_refused(place: Place) -> None:
    out = place.folder / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="never overwritten"):
        place.open()
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(OutputExistsError, match="is a file"):
        place.open(output=str(out / "mine.txt"))


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"output": "model/model.json/out"}, UserError, "out"),
        ({"model": "random:resnot18"}, UnknownNameError, "resnot18"),
        ({"inputs": ("nowhere",)}, UserError, "nowhere"),
        ({"inputs": ("model/model.json/x",)}, UserError, "no folder or file"),
        ({"since": ("nowhere",)}, UserError, "not the finished output"),
        ({"inputs": (), "failed_only": "nowhere"}, UserError, "not the finished output"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_anything_is_written(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    kind: type[UserError],
    sentence: str,
) -> None:
    monkeypatch.chdir(place.folder)
    with pytest.raises(kind, match=r"^[^\n]+$") as caught:
        place.open(**change)
    assert sentence in str(caught.value)
    assert read_progress(OutputLayout(str(place.folder / "out"))) is None
    assert list_jobs(place.settings) == []


def test_an_output_that_cannot_be_written_is_one_sentence(place: Place) -> None:
    (place.folder / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written[^\n]+$"):
        place.open(output=str(place.folder / "file" / "below"))


def test_an_output_of_other_work_is_refused_and_kept(place: Place) -> None:
    job = place.open()
    with pytest.raises(OutputExistsError, match="top_k is 5 there and 3 here"):
        place.open(top_k=3)
    assert place.open().plan == job.plan


def test_a_run_that_loses_the_race_for_the_plan_joins_the_winner(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner: list[Job] = []
    put_if_absent = storage.put_if_absent

    def later(location: str, content: bytes) -> bool:
        monkeypatch.undo()
        winner.append(place.open())
        return put_if_absent(location, content)

    monkeypatch.setattr(storage, "put_if_absent", later)
    loser = place.open()
    assert loser.plan == winner[0].plan
    assert loser.layout.abandoned_folders(loser.plan.manifest) == []
    assert any("joining it" in note for note in place.reporter.notes)


def test_a_run_whose_manifest_was_tidied_away_by_the_winner_joins_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_if_absent = storage.put_if_absent

    def later(location: str, content: bytes) -> bool:
        monkeypatch.undo()
        place.run(place.worked())
        return put_if_absent(location, content)

    monkeypatch.setattr(storage, "put_if_absent", later)
    loser = place.open()
    assert loser.committed is not None
    assert finish_job(loser).totals.num_rows == 40


# --- run --------------------------------------------------------------------------------------


@every_format
def test_a_job_whose_shards_are_there_is_committed_without_a_cluster(
    place: Place, output_format: OutputFormat
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
def test_a_committed_job_says_the_same_again(place: Place, output_format: OutputFormat) -> None:
    first = place.run(place.worked(3, 20, format=output_format))
    again = place.open(format=output_format)
    assert again.committed is not None
    second = finish_job(again)
    same = dataclasses.replace(
        second, seconds=first.seconds, committed_here=True, first_result_seconds=None
    )
    assert same == first


def test_what_was_skipped_and_chosen_is_said_everywhere(place: Place) -> None:
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


def test_folders_whose_names_are_not_utf8_are_inputs_and_outputs(place: Place) -> None:
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


def test_results_can_be_inputs_again_and_again(place: Place) -> None:
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


def test_a_run_that_finds_the_commit_of_another_says_so(place: Place) -> None:
    job = place.worked(3)
    assert place.run(job).committed_here
    late = place.run(job)
    assert not late.committed_here
    assert late.totals.num_failed == 1


def test_a_damaged_shard_is_told_to_whoever_looks(place: Place) -> None:
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
    place: Place, output_format: OutputFormat
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


def test_a_job_counts_what_is_done(place: Place) -> None:
    summary = place.run_with(place.open(), 3, 39)
    assert place.reporter.advanced == [(0, 0), (16, 1), (16, 0), (8, 1)]
    assert (summary.totals.num_rows, summary.totals.num_failed) == (40, 2)
    assert summary.first_result_seconds is not None
    progress = read_progress(OutputLayout(summary.output))
    assert progress is not None
    assert (progress.state, progress.num_done, progress.num_failed) == ("succeeded", 40, 2)


def test_a_job_begins_with_a_small_shard_and_ends_with_small_ones(place: Place) -> None:
    place.add_images(*(f"more-{number:04d}.png" for number in range(800)))
    place.run_with(place.open(workers="2"))
    sizes = [count for count, _ in place.reporter.advanced[1:]]
    assert sizes[:2] == [16, 16]
    growing = sizes[3:]  # the one before holds what was left
    assert growing == sorted(growing, reverse=True)
    assert growing[0] > growing[-1] == 16


def test_a_rotten_input_stops_a_job_and_stops_it_again(place: Place) -> None:
    job = place.open(max_failures="5%")
    for shards_done in (2, 2):
        with pytest.raises(JobFailedError, match="3 of 32 images failed so far"):
            place.run_with(job, 3, 17, 18)
        assert job.layout.finished_shards() == set(range(shards_done))
    assert list_jobs(place.settings)[0].state == "failed"
    more = place.open(max_failures="10%")
    summary = place.run_with(more, 3, 17, 18)
    assert summary.committed_here
    assert summary.totals.num_failed == 3


def test_a_limit_that_the_last_shard_exceeds_still_keeps_a_job_from_its_commit(
    place: Place,
) -> None:
    job = place.open(max_failures="0")
    for _ in range(2):
        with pytest.raises(JobFailedError, match="1 of 40 images failed so far"):
            place.run_with(job, 39)
    assert place.open(max_failures="0").committed is None


def test_a_cancelled_job_goes_on_where_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
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
    assert job.layout.finished_shards() == {0}
    place.reporter.advanced.clear()
    summary = place.run_with(place.open(), 3)
    assert place.reporter.advanced == [(16, 1), (16, 0), (8, 0)]
    assert summary.totals.num_failed == 1


def test_an_old_mark_does_not_cancel_the_next_run(place: Place) -> None:
    job = place.open()
    storage.put_atomic(job.layout.cancel, b"")
    assert place.run_with(job).committed_here


def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
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
    assert job.layout.finished_shards() == {0, 1, 2}
    assert place.run(place.open()).committed_here


# --- death ------------------------------------------------------------------------------------


def test_a_run_that_dies_before_any_change_is_finished_by_the_next(place: Place) -> None:
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
        assert again.layout.finished_shards() == set()
        if not died:
            break
        call += 1
    assert call == 7


def dies_in_run(place: Place, job: Job, call: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        dies_at(patch, call, after=False)
        try:
            place.run(job)
        except Killed:
            return True
    return False


def test_an_output_is_opened_from_any_home(place: Place) -> None:
    summary = place.run(place.worked())
    elsewhere = settings_in(place.folder, "other-home")
    job = open_job(place.request(), elsewhere, place.reporter)
    assert job.committed is not None
    assert job.committed.num_rows == summary.totals.num_rows
