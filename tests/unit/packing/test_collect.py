"""The receipts of all shards, collected and checked before the commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import JobFailedError
from tests.support.packing import (
    FORMATS,
    files_of,
    here,
    nobody,
    numbered,
    opened,
    pack,
    request,
    run,
    write_files,
)


@FORMATS
def test_a_file_of_nothing_but_failures_is_none(tmp_path: Path, file_format: str) -> None:
    lines = ["path", *(f"gone-{number}.jpg" for number in range(3))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    summary = pack(str(tmp_path / "list.csv"), tmp_path / "out", format=file_format)
    assert (summary.committed.files, summary.committed.num_failed) == ((), 3)
    assert list(files_of(tmp_path / "out")) == ["_failures.parquet"]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text("no")])
def test_a_file_that_was_tampered_with_is_not_committed(tmp_path: Path, change: Any) -> None:
    folder = write_files(tmp_path / "in", numbered(4))
    job = opened(request(folder, tmp_path / "out"))
    list(here([0], job.context))
    change(tmp_path / "out" / "part-00000.parquet")
    with pytest.raises(JobFailedError, match=r"part-00000.parquet in .* was removed or changed"):
        run(job, nobody)
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_a_damaged_receipt_is_made_anew(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", numbered(4))
    job = opened(request(folder, tmp_path / "out"))
    list(here([0], job.context))
    Path(job.layout.shard(0)).write_bytes(b"PAR1 no")
    with pytest.raises(JobFailedError, match="run the same command again"):
        run(job, here)
    assert run(job, here).committed.num_rows == 4
