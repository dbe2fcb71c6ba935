"""Images are read from the cells of Parquet columns, in any order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from eagleray.core.errors import BadImageError, Reason
from eagleray.io.fetch.parquet import CellReader
from tests.support.containers import (
    cell_source,
    hugging_face_images,
    write_parquet,
)
from tests.support.image_sources import MAX_BYTES, change, failure, noise, reader


def cells(count: int, size: int = 100) -> list[bytes]:
    return [noise(size, seed=index) for index in range(count)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), "struct"])
def test_cells_are_read_in_any_order(tmp_path: Path, kind: pa.DataType | str) -> None:
    contents = cells(250)
    column = hugging_face_images(contents) if kind == "struct" else pa.array(contents, kind)
    location = write_parquet(
        tmp_path / "a.parquet", {"label": range(250), "image": column}, row_group_size=60
    )
    order = [*range(250), 3, 249, 0, 120, 119, 60, 59]
    shared = reader()
    read = [shared.read(cell_source(location, "image", row)) for row in order]
    assert read == [contents[row] for row in order]


def test_many_threads_share_one_table(tmp_path: Path) -> None:
    contents = cells(2000, size=3000)
    location = write_parquet(tmp_path / "a.parquet", {"image": contents}, row_group_size=700)
    shared = reader()
    ready = threading.Barrier(16)

    def read(row: int) -> bytes:
        if row < 16:
            ready.wait()
        return shared.read(cell_source(location, "image", row))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(2000))) == contents


def test_a_large_row_group_is_not_held_whole(tmp_path: Path) -> None:
    contents = cells(100, size=2**20)
    options = {"use_dictionary": False, "write_batch_size": 4}
    location = write_parquet(tmp_path / "a.parquet", {"image": contents}, **options)
    before = pa.total_allocated_bytes()
    table = CellReader(location, "image")
    most = 0
    for row, content in enumerate(contents):
        assert table.read(row) == content
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 75 * 2**20
    assert table.read(3) == contents[3]


@pytest.mark.parametrize("as_struct", [False, True])
def test_an_empty_cell_is_missing(tmp_path: Path, as_struct: bool) -> None:
    contents = [b"a", None, b""]
    column = hugging_face_images(contents) if as_struct else pa.array(contents, pa.binary())
    location = write_parquet(tmp_path / "a.parquet", {"image": column})
    assert failure(cell_source(location, "image", 1)) == (Reason.MISSING, "the cell is empty")
    assert reader().read(cell_source(location, "image", 2)) == b""


@pytest.mark.parametrize(
    ("name", "row", "reason", "message"),
    [
        ("a.parquet", 2, Reason.MISSING, "the table has 2 rows, and this is row 2"),
        ("a.parquet", 1, Reason.TOO_MANY_BYTES, "has 1,048,577 bytes, the limit is 1,048,576"),
        ("b.parquet", 0, Reason.MISSING, "there is no such archive or table, or no such image"),
        ("c.parquet", 0, Reason.UNREADABLE, "is not a whole Parquet file"),
        ("d.parquet", 0, Reason.UNREADABLE, "has no column of images named 'image'"),
    ],
)
def test_a_cell_that_cannot_be_read_has_a_reason(
    tmp_path: Path, name: str, row: int, reason: Reason, message: str
) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [b"a", b"b" * (MAX_BYTES + 1)]})
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no more")
    write_parquet(tmp_path / "d.parquet", {"image": ["text"]})
    found = failure(cell_source(str(tmp_path / name), "image", row))
    assert found[0] == reason
    assert message in found[1]


def test_a_damaged_page_spares_the_rows_before_it_and_other_groups(tmp_path: Path) -> None:
    contents = cells(300, size=1000)
    location = write_parquet(
        tmp_path / "a.parquet",
        {"image": contents},
        row_group_size=100,
        use_dictionary=False,
        data_page_size=10_000,
        write_page_checksum=False,
        compression="zstd",
    )
    middle = Path(location).read_bytes().index(contents[150])
    change(location, middle - 40, b"\xff" * 3000)
    shared = reader()

    def read_or_reason(row: int) -> bytes | str:
        try:
            return shared.read(cell_source(location, "image", row))
        except BadImageError as error:
            return str(error)

    answers = {row: read_or_reason(row) for row in range(300)}
    read = {row: answer for row, answer in answers.items() if isinstance(answer, bytes)}
    reasons = [answer for answer in answers.values() if isinstance(answer, str)]
    assert len(set(reasons)) == 1
    assert reasons[0].startswith("unreadable: the table is damaged: ")
    assert {row: contents[row] for row in read} == read
    assert set(read) >= {*range(100), *range(200, 300)}
    assert 150 not in read
