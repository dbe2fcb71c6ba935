"""The manifest: rows in are rows out, numbered, in shards within their bounds."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.core.errors import InputError
from eagleray.sharded.columns import user_columns
from eagleray.sharded.manifest import ManifestReader, ShardLimits, shard_rows, write_manifest
from eagleray.sources import LISTING_SCHEMA
from tests.support.batch import NO_COLUMNS, listing

BIG = 64 * 2**20


def write(folder: Path, *tables: pa.Table, user_schema: pa.Schema = NO_COLUMNS) -> ManifestReader:
    manifest = write_manifest(tables, user_schema, str(folder))
    return ManifestReader(str(folder), manifest.num_shards)


def rows_for_shards(num_shards: int) -> int:
    """Return how many rows make exactly so many shards."""
    rows = 0
    for _ in range(num_shards):
        rows += shard_rows(rows)
    return rows


def test_rows_are_numbered_in_the_order_of_the_listing(tmp_path: Path) -> None:
    odd = ["a b.png", "ü%20#?.png", "new\nline.png", "a b.png", ""]
    reader = write(tmp_path, listing(5, uris=odd, sizes=[1, None, 0, 2**40, 5]))
    (rows,) = reader.tables()
    assert rows.column("row").to_pylist() == [0, 1, 2, 3, 4]
    assert rows.column("uri").to_pylist() == odd
    assert rows.column("size").to_pylist() == [1, None, 0, 2**40, 5]


def test_the_users_columns_keep_their_names_beside_ours(tmp_path: Path) -> None:
    user = pa.table({"uri": ["mine"], "row": [7], "user:x": [1.5], "": ["empty"], "a.b": [None]})
    reader = write(tmp_path, listing(1, user=user), user_schema=user.schema)
    assert user_columns(reader.schema).equals(user.schema)
    (rows,) = reader.tables()
    (row,) = rows.to_pylist()
    assert row | {"row": 0, "uri": "/images/0.png"} == row
    assert row["user:uri"] == "mine"
    assert row["user:row"] == 7
    assert row["user:user:x"] == 1.5


@pytest.mark.parametrize("num_shards", [1, 63, 64, 65, 128, 129])
def test_a_file_holds_sixty_four_shards_and_a_row_group_is_one(
    tmp_path: Path, num_shards: int
) -> None:
    rows = rows_for_shards(num_shards)
    reader = write(tmp_path, listing(rows))
    files = sorted(path.name for path in tmp_path.glob("part-*"))
    assert files == [f"part-{number:05d}.parquet" for number in range(-(-num_shards // 64))]
    groups = [pq.ParquetFile(tmp_path / name).num_row_groups for name in files]
    assert sum(groups) == num_shards
    assert set(groups[:-1]) <= {64}
    last = reader.shard(num_shards - 1)
    assert last.column("row").to_pylist()[-1] == rows - 1
    assert sum(reader.shard_sizes()) == rows
    assert len(list(reader.shard_sizes())) == num_shards


def test_the_sizes_of_shards_of_a_manifest_of_the_version_before_are_read_from_its_files(
    tmp_path: Path,
) -> None:
    reader = write(tmp_path, listing(rows_for_shards(70)))
    sizes = reader.shard_sizes().tolist()
    (tmp_path / "sizes.parquet").unlink()
    assert reader.shard_sizes().tolist() == sizes


def test_one_row_is_one_shard(tmp_path: Path) -> None:
    reader = write(tmp_path, listing(1))
    assert list(reader.shard_sizes()) == [1]
    assert reader.shard(0).column("row").to_pylist() == [0]


def test_shards_are_small_at_first_and_never_a_large_share_of_the_job() -> None:
    assert shard_rows(0) == 16
    assert shard_rows(10**7) == 512
    rows = 0
    while rows < 200_000:
        size = shard_rows(rows)
        assert size % 16 == 0
        assert size <= max(16, rows / 32 + 16)
        rows += size


def test_large_images_make_small_shards(tmp_path: Path) -> None:
    sizes = [BIG // 2, BIG // 2, 1, BIG * 3, BIG * 3, *[BIG // 4] * 5]
    reader = write(tmp_path, listing(10, sizes=sizes))
    shards = [reader.shard(number).column("size").to_pylist() for number in range(5)]
    assert [len(shard) for shard in shards] == [2, 1, 1, 1, 4]
    assert sum(len(shard) for shard in shards) == 9
    assert list(reader.shard_sizes()) == [2, 1, 1, 1, 4, 1]


def test_unknown_sizes_do_not_count(tmp_path: Path) -> None:
    reader = write(tmp_path, listing(20, sizes=[None] * 20))
    assert list(reader.shard_sizes()) == [16, 4]


@pytest.mark.parametrize("tables", [[], [listing(0)], [listing(0), listing(0)]])
def test_no_rows_are_one_sentence(tmp_path: Path, tables: list[pa.Table]) -> None:
    with pytest.raises(InputError, match="hold no images"):
        write_manifest(tables, NO_COLUMNS, str(tmp_path))


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(1, pa.month_day_nano_interval()),
        pa.array([{}], pa.struct([])),
        pa.array([2**60], pa.timestamp("s")),
    ],
    ids=str,
)
def test_a_column_that_no_file_holds_is_said_before_any_work(
    tmp_path: Path, column: pa.Array
) -> None:
    user = pa.table({"strange": column})
    with pytest.raises(InputError, match="cannot be stored"):
        write(tmp_path, listing(1, user=user), user_schema=user.schema)


def test_progress_is_reported_while_rows_arrive(tmp_path: Path) -> None:
    told: list[int] = []
    tables = [listing(300), listing(0), listing(500)]
    write_manifest(tables, NO_COLUMNS, str(tmp_path), on_rows=told.append)
    assert told == [300, 300, 800]


def test_a_table_without_rows_between_others_changes_nothing(tmp_path: Path) -> None:
    one = write_manifest([listing(600)], NO_COLUMNS, str(tmp_path / "one"))
    pieces = [listing(0), listing(600).slice(0, 100), listing(0), listing(600).slice(100)]
    other = write_manifest(pieces, NO_COLUMNS, str(tmp_path / "other"))
    assert one.digest == other.digest


@pytest.mark.parametrize("rows_at_once", [7, 511, 512, 513, 1000])
def test_long_manifests_are_cut_alike_however_they_come_in(
    tmp_path: Path, rows_at_once: int
) -> None:
    whole = listing(5000)
    pieces = [whole.slice(start, rows_at_once) for start in range(0, 5000, rows_at_once)]
    one = write_manifest([whole], NO_COLUMNS, str(tmp_path / "one"))
    other = write_manifest(pieces, NO_COLUMNS, str(tmp_path / "other"))
    assert (other.num_shards, other.digest) == (one.num_shards, one.digest)


SIZES = st.lists(
    st.one_of(st.none(), st.integers(0, 10**6), st.integers(BIG // 5, BIG * 2)),
    min_size=1,
    max_size=40,
)
"""Of the first images; all others are small."""


def cuts_of(table: pa.Table, places: list[int]) -> list[pa.Table]:
    edges = [0, *sorted(place % (table.num_rows + 1) for place in places), table.num_rows]
    return [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]


@settings(max_examples=25)
@given(
    rows=st.integers(1, 1500),
    large=SIZES,
    places=st.lists(st.integers(0, 5000), max_size=12),
)
def test_the_same_inputs_make_the_same_manifest_however_they_come_in(
    rows: int, large: list[int | None], places: list[int]
) -> None:
    sizes = [*large[:rows], *[1000] * (rows - len(large))]
    user = pa.table({"number": pa.array(range(rows)), "text": [f"ä {n}" for n in range(rows)]})
    whole = listing(rows, sizes=sizes, user=user)
    with tempfile.TemporaryDirectory() as folder:
        one = write_manifest([whole], user.schema, f"{folder}/one")
        other = write_manifest(cuts_of(whole, places), user.schema, f"{folder}/other")
        assert one.digest == other.digest
        assert one.num_rows == rows
        assert one.num_bytes == sum(size or 0 for size in sizes)
        reader = ManifestReader(f"{folder}/other", other.num_shards)
        shards = [reader.shard(number) for number in range(other.num_shards)]
        assert_shards(shards, whole)
        assert pa.concat_tables(reader.tables()).equals(pa.concat_tables(shards))


def assert_shards(shards: list[pa.Table], whole: pa.Table) -> None:
    """Check that shards hold the rows of a listing, in order, within the bounds."""
    together = pa.concat_tables(shards)
    assert together.column("row").to_pylist() == list(range(whole.num_rows))
    assert together.drop_columns(["row"]).to_pylist() == [
        {f"user:{k}" if k not in LISTING_SCHEMA.names else k: v for k, v in row.items()}
        for row in whole.to_pylist()
    ]
    before = 0
    for shard in shards[:-1]:
        num_bytes = sum(size or 0 for size in shard.column("size").to_pylist())
        assert shard.num_rows == 1 or num_bytes <= BIG
        assert 1 <= shard.num_rows <= shard_rows(before)
        before += shard.num_rows
        next_size: Any = together.column("size")[before].as_py() or 0
        full = shard.num_rows == shard_rows(before - shard.num_rows)
        assert full or num_bytes + next_size > BIG


def test_a_manifest_is_cut_by_the_limits_it_is_given(tmp_path: Path) -> None:
    limits = ShardLimits(
        max_rows=4,
        max_bytes=100,
        next_rows=lambda _: 4,
        bytes_of=lambda rows: np.where(rows.column("uri").to_numpy() == "/images/5.png", 99, 10),
    )
    manifest = write_manifest([listing(10)], NO_COLUMNS, str(tmp_path), limits=limits)
    reader = ManifestReader(str(tmp_path), manifest.num_shards)
    assert list(reader.shard_sizes()) == [4, 1, 1, 4]
    assert manifest.num_bytes == 1000  # as listed
