"""The logs of jobs: whole, in order, in storage that may fail for a while."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.scheduling.logs import LogReader, LogWriter, log_folder
from eagleray.scheduling.records import new_job


def row_of(folder: Path) -> Any:
    return new_job(id="train-1", program="train", owner="ada", logs=str(folder))


def lines(reader: LogReader, epoch: int) -> list[tuple[str, bool]]:
    return [(line.text, line.is_output) for line in reader.read(epoch)]


def test_what_is_printed_is_read_in_order_with_its_stream(tmp_path: Path) -> None:
    reader = LogReader(row_of(tmp_path))
    first = LogWriter(str(tmp_path), 1)
    first.add("a note\n", is_output=False)
    first.add("Käfer 猫\x85\r\n", is_output=True)
    first.close()
    assert lines(reader, 1) == [("a note\n", False), ("Käfer 猫\x85\r\n", True)]
    assert lines(reader, 1) == []
    second = LogWriter(str(tmp_path), 2)
    second.add("again\n", is_output=False)
    second.close()
    assert lines(reader, 2) == [("again\n", False)]
    assert len(lines(LogReader(row_of(tmp_path)), 2)) == 3  # another machine reads all attempts


def test_files_are_few_and_readable_while_the_job_runs(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path), 1, seconds=3600)
    for number in range(100):
        writer.add(f"{number} {'x' * 10_000}\n", is_output=False)
    reader = LogReader(row_of(tmp_path))
    found: list[tuple[str, bool]] = []
    while len(found) < 50:
        found += lines(reader, 1)
    writer.close()
    found += lines(reader, 1)
    assert [text.split()[0] for text, _ in found] == [str(number) for number in range(100)]
    assert len(list(tmp_path.iterdir())) <= 6


def test_a_storage_that_fails_for_a_while_delays_the_log_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures, failed = storage.put_atomic, 2, threading.Event()

    def fail_at_first(location: str, content: bytes) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            failed.set()
            raise OSError("out of reach")
        put(location, content)

    monkeypatch.setattr(storage, "put_atomic", fail_at_first)
    writer = LogWriter(str(tmp_path), 1, seconds=0.05)
    writer.add("first\n", is_output=True)
    assert failed.wait(10)
    writer.add("second\n", is_output=True)
    reader = LogReader(row_of(tmp_path))
    found: list[tuple[str, bool]] = []
    while len(found) < 2:
        found += lines(reader, 1)
    writer.close()
    assert found == [("first\n", True), ("second\n", True)]
    assert writer.fault == ""


def test_a_log_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = LogWriter(str(tmp_path / "file" / "logs"), 1, seconds=0.01)
    writer.add("lost\n", is_output=True)
    writer.close()
    assert "Not a directory" in writer.fault


def test_logs_lie_beside_results_or_in_the_folder_of_all_jobs(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, jobs_root="s3://jobs/logs/")
    predict = new_job(id="p-1", program="predict", owner="ada", output="s3://results/1/")
    train = new_job(id="t-1", program="train", owner="ada")
    assert log_folder(predict, settings) == "s3://results/1/_eagleray/logs/p-1"
    assert log_folder(train, settings) == "s3://jobs/logs/t-1"
    assert log_folder(train, Settings(home=tmp_path)) == str(tmp_path / "runs/_jobs/t-1")
