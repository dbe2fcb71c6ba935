"""A packing job without Ray: every input accounted for, whatever is killed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from eagleray.core.errors import InputError, JobFailedError, OutputExistsError, UserError
from eagleray.core.job_state import JobState
from eagleray.packing.job import open_pack
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext
from eagleray.sharded.history import list_jobs
from tests.support.batch import Killed, dies_at, output
from tests.support.models import settings_in
from tests.support.packing import (
    FORMATS,
    JPEG,
    MIB,
    PNG,
    QUIET,
    files_of,
    here,
    manifest_of,
    nobody,
    numbered,
    opened,
    pack,
    read_back,
    request,
    run,
    write_files,
)


def test_what_was_skipped_is_in_plan_and_commit(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {"_DSC1.jpg": b"1", ".a.jpg": b"2", "Thumbs.db": b"3"})
    job = opened(request(folder, tmp_path / "out"))
    assert job.plan.remarks == (
        "2 files were skipped: 1 hidden (.a.jpg), 1 of an operating system (Thumbs.db).",
    )
    summary = run(job, here)
    assert summary.committed.skipped == {"hidden": 1, "system": 1}
    assert read_back(tmp_path / "out") == [b"1"]
    assert manifest_of(tmp_path / "out")["skipped"] == summary.committed.skipped


@FORMATS
def test_files_have_the_requested_size(tmp_path: Path, file_format: str) -> None:
    folder = write_files(tmp_path / "in", numbered(20))
    pack(folder, tmp_path / "out", format=file_format, file_size="7000")
    manifest = manifest_of(tmp_path / "out")
    assert [(file["first_row"], file["num_rows"]) for file in manifest["files"]] == [
        (0, 7),
        (7, 7),
        (14, 6),
    ]
    for file in manifest["files"]:
        content = (tmp_path / "out" / file["name"]).read_bytes()
        assert file["num_bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert manifest["image_bytes"] == 20_000
    assert not (tmp_path / "out" / "_failures.parquet").exists()
    assert not (tmp_path / "out" / "_eagleray" / "shards").exists()


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    write_files(tmp_path / "in", {"0.jpg": JPEG, "4.png": PNG})
    with (tmp_path / "in" / "2.jpg").open("wb") as file:
        file.truncate(128 * MIB + 1)
    names = ["in/0.jpg", "in/1.jpg", "in/2.jpg", "in", "in/4.png", "http://127.0.0.1/a.png", ""]
    lines = ["path,label", *(f"{name},l{number}" for number, name in enumerate(names))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    return str(tmp_path / "list.csv")


@FORMATS
def test_every_input_is_packed_or_has_a_reason(
    tmp_path: Path, faulty: str, file_format: str
) -> None:
    summary = pack(faulty, tmp_path / "out", format=file_format)
    assert summary.reasons == {"missing": 3, "too_many_bytes": 1, "unreadable": 1}
    assert summary.failures == f"{tmp_path}/out/_failures.parquet"
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["num_rows"], manifest["num_failed"]) == (7, 5)
    assert read_back(tmp_path / "out") == [JPEG, PNG]
    rows = pq.read_table(tmp_path / "out" / "_failures.parquet").to_pylist()
    assert list(rows[0]) == ["uri", "reason", "message", "label"]
    assert [(row["label"], row["reason"]) for row in rows] == [
        ("l1", "missing"),
        ("l2", "too_many_bytes"),
        ("l3", "missing"),
        ("l5", "unreadable"),
        ("l6", "missing"),
    ]
    assert rows[0]["uri"] == f"{tmp_path}/in/1.jpg"
    assert "--allow-urls" in rows[3]["message"]


def test_failures_are_an_input(tmp_path: Path, faulty: str) -> None:
    summary = pack(faulty, tmp_path / "out")
    write_files(tmp_path / "in", {"1.jpg": b"found", "2.jpg": b"smaller"})
    assert summary.failures is not None
    again = pack(summary.failures, tmp_path / "again")
    assert again.reasons == {"missing": 2, "unreadable": 1}
    rows = pq.read_table(tmp_path / "again" / "part-00000.parquet").to_pylist()
    assert [(row["image"], row["label"]) for row in rows] == [(b"found", "l1"), (b"smaller", "l2")]


@pytest.mark.parametrize(("limit", "stops"), [("4", True), ("50%", True), ("5", False)])
def test_too_many_failures_stop_the_job_and_keep_what_is_done(
    tmp_path: Path, faulty: str, limit: str, stops: bool
) -> None:
    expected = (
        pytest.raises(JobFailedError, match="5 of 7 images failed")
        if stops
        else contextlib.nullcontext()
    )
    with expected:
        pack(faulty, tmp_path / "out", max_failures=limit)
    assert (tmp_path / "out" / "_manifest.json").exists() is not stops
    assert (tmp_path / "out" / "part-00000.parquet").exists()
    if stops:
        job = opened(request(faulty, tmp_path / "out", max_failures=limit))
        with pytest.raises(JobFailedError, match="5 of 7 images failed"):
            run(job, nobody)
    job = opened(request(faulty, tmp_path / "out"))  # without a limit
    assert run(job, nobody).committed.num_failed == 5


@pytest.mark.parametrize("after", [False, True])
@FORMATS
def test_a_killed_run_resumes_and_ends_with_the_same_files(
    tmp_path: Path, file_format: str, after: bool
) -> None:
    folder = write_files(tmp_path / "in", numbered(12))
    (tmp_path / "in" / "005.jpg").unlink()
    (tmp_path / "in" / "005.jpg").symlink_to("nowhere")
    options: dict[str, Any] = {"format": file_format, "file_size": "4000"}
    pack(folder, tmp_path / "whole", **options)
    for call in range(100):
        killed = tmp_path / f"killed-{call}"
        with pytest.MonkeyPatch.context() as patch:
            changes = dies_at(patch, call, after=after)
            with contextlib.suppress(Killed):
                pack(folder, killed, **options)
        summary = pack(folder, killed, **options)
        assert files_of(killed) == files_of(tmp_path / "whole")
        assert summary.committed.files == tuple(
            type(file)(**fields)
            for file, fields in zip(
                summary.committed.files, manifest_of(tmp_path / "whole")["files"], strict=True
            )
        )
        private = sorted(path.name for path in (killed / "_eagleray").rglob("*") if path.is_file())
        assert private == ["part-00000.parquet", "plan.json", "progress.json", "sizes.parquet"]
        if len(list(changes())) <= call:
            break
    assert call > 10


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", numbered(10))
    job = opened(request(folder, tmp_path / "out", file_size="3000"))
    list(here([0, 2], job.context))
    packed: list[int] = []

    def rest(shards: Iterable[int], context: PackContext, *_: object) -> Iterator[PackedShard]:
        packed.extend(shards)
        return here(shards, context)

    summary = run(job, rest)
    assert packed == [1, 3]
    assert (summary.packed_here, summary.committed.num_rows) == (4, 10)
    again = run(opened(request(folder, tmp_path / "out", file_size="3000")), nobody)
    assert (again.committed, again.committed_here) == (summary.committed, False)


def test_a_packing_job_is_in_the_history(tmp_path: Path, faulty: str) -> None:
    settings = settings_in(tmp_path)
    job = open_pack(request(faulty, tmp_path / "out"), settings, QUIET)
    (status,) = list_jobs(settings)
    assert (status.state, status.num_rows) == (JobState.STOPPED, 7)
    run(job, here)
    (status,) = list_jobs(settings)
    assert status.plan is not None
    assert (status.plan.kind, status.state) == ("pack", JobState.SUCCEEDED)
    assert (status.num_done, status.num_failed) == (7, 5)
    assert status.reasons == {"missing": 3, "too_many_bytes": 1, "unreadable": 1}
    assert status.plan.describe()["file_bytes"] == 256_000_000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "webdataset"}, "format is parquet there and webdataset here"),
        ({"file_size": "999"}, "file_bytes is 256000000 there and 999 here"),
        ({"inputs": ("a", "b")}, "inputs is "),
        ({"column": "x"}, "column is None there and x here"),
    ],
)
def test_another_plan_is_refused_with_what_differs(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = write_files(tmp_path / "in", numbered(2))
    opened(request(folder, tmp_path / "out"))
    with pytest.raises(OutputExistsError, match=r"^[^\n]+$") as caught:
        opened(request(folder, tmp_path / "out", **change))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"inputs": ("nowhere",)}, InputError, "There is no folder or file nowhere"),
        ({"inputs": ("in/list.csv",), "column": "x"}, UserError, "No column of"),
        ({"output": "in"}, OutputExistsError, "in is not empty"),
        ({"output": "in/list.csv"}, OutputExistsError, "is a file; name a folder"),
        ({"output": "results"}, OutputExistsError, "belongs to another kind of job"),
        ({"output": "in/list.csv/out"}, InputError, "cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[UserError],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "in", {"0.jpg": JPEG, "list.csv": b"path\n0.jpg\n"})
    output(tmp_path / "results", shards=[])
    with pytest.raises(error, match=r"^[^\n]+$") as caught:
        opened(request("in/0.jpg", "out", **change))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()
