"""The archive of local inputs: put into storage once, and made again from there."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from eagleray.core.errors import InputError
from eagleray.database.tables import JobRow
from eagleray.scheduling.packages import keep_package, make_package, place_inputs, read_package
from eagleray.scheduling.records import new_job

ROOT = "memory://packages/jobs"
FILES = {
    "inputs/0/photos/a.png": b"first",
    "inputs/0/photos/_more/.b.png": b"second",
    "inputs/1/list.csv": b"image\n",
    "models/0/digits/model.json": b"{}",
}


@pytest.fixture(autouse=True)
def _empty_storage() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path


def job(name: str, unpacked: Path, logs: str) -> JobRow:
    package, _ = make_package({one: unpacked / one for one in FILES})
    return new_job(id=name, program="predict", owner="ada", package=package, logs=f"{logs}/{name}")


def stored() -> list[bytes]:
    memory = fsspec.filesystem("memory")
    return [bytes(memory.cat_file(one)) for one in memory.find(ROOT.removeprefix("memory://"))]


def test_inputs_are_stored_once_and_make_the_same_archive_again(unpacked: Path) -> None:
    rows = [job(name, unpacked, ROOT) for name in ("predict-1", "predict-2")]
    placed = [place_inputs(row, unpacked, ROOT) for row in rows]
    assert placed[0] == placed[1]
    assert list(placed[0]) == ["inputs/0/photos"]
    place = placed[0]["inputs/0/photos"]
    assert re.search(r"/_inputs/\d{4}-\d{2}/_ray_pkg_", place)  # removed by its age, month by month
    assert fsspec.filesystem("memory").cat_file(f"{place}/a.png") == b"first"
    for content in FILES.values():
        assert sum(content in one for one in stored()) == 1
    _, archive = make_package({one: unpacked / one for one in FILES})
    assert [read_package(row) for row in rows] == [archive] * 2


def test_a_copy_of_the_archive_is_kept_where_nodes_share_no_storage(
    unpacked: Path, tmp_path: Path
) -> None:
    row = job("predict-1", unpacked, f"{tmp_path}/logs")
    keep_package(row, unpacked)
    with zipfile.ZipFile(io.BytesIO(read_package(row))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == FILES


def test_inputs_that_are_gone_are_reported(unpacked: Path) -> None:
    with pytest.raises(InputError, match="inputs of job predict-3 are gone with the head"):
        read_package(job("predict-3", unpacked, ROOT))
