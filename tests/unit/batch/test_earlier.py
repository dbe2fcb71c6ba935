"""Earlier jobs: their results, their failures as inputs, and what they have seen already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eagleray.batch.earlier import failures_of, read_results, skip_known
from eagleray.batch.results import result_schema
from eagleray.core.errors import InputError
from eagleray.core.types import OutputFormat
from eagleray.io import storage
from eagleray.sources import LISTING_SCHEMA
from tests.support.batch import listing, output
from tests.support.result_files import ODD_COLUMNS, every_format

# --- results ----------------------------------------------------------------------------------


@every_format
def test_results_are_read_file_by_file_with_their_types(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    user = pa.table({"label": ["007"] * 100, "when": ["2026-01-01"] * 99 + [None]})
    made = output(
        tmp_path, rows=100, failed={99}, user=user, rows_per_file=40, output_format=output_format
    )
    made.commit()
    parts = list(read_results(str(tmp_path)))
    assert [part.num_rows for part in parts] == [48, 48, 4]
    schema = result_schema(made.model, made.manifest.schema)
    assert all(part.schema.equals(schema) for part in parts)
    rows = pa.concat_tables(parts)
    assert rows.column("row").to_pylist() == list(range(100))
    assert set(rows.column("input_label").to_pylist()) == {"007"}
    assert rows.column("when")[99].as_py() is None
    assert rows.column("reason")[99].as_py() == "truncated"


@every_format
def test_only_the_requested_columns_are_read(tmp_path: Path, output_format: OutputFormat) -> None:
    output(tmp_path, rows=3, output_format=output_format).commit()
    (part,) = read_results(str(tmp_path), columns=["status", "row"])
    assert part.to_pydict() == {"status": ["ok"] * 3, "row": [0, 1, 2]}


@every_format
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_a_users_column_of_any_type_goes_through_a_whole_job(
    tmp_path: Path, name: str, output_format: OutputFormat
) -> None:
    user = pa.table({name: ODD_COLUMNS[name]})
    output(tmp_path, rows=2, user=user, output_format=output_format).commit()
    (part,) = read_results(str(tmp_path))
    assert part.column(name).cast(user.schema.field(0).type).equals(user.column(0))


def test_files_that_were_never_committed_are_not_read(tmp_path: Path) -> None:
    output(tmp_path, rows=32, rows_per_file=16).commit()
    stray = (tmp_path / "part-00001.parquet").read_bytes()
    (tmp_path / "part-00002.parquet").write_bytes(stray)
    assert [part.num_rows for part in read_results(str(tmp_path))] == [16, 16]


@pytest.mark.parametrize("state", ["nothing", "empty", "unfinished"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda place: list(read_results(place)),
        failures_of,
        lambda place: list(skip_known([listing(1)], [place])),
    ],
    ids=["read_results", "failures_of", "leave_out_known"],
)
def test_what_is_not_finished_is_one_sentence(tmp_path: Path, ask: Any, state: str) -> None:
    place = tmp_path / "out"
    if state == "empty":
        place.mkdir()
    elif state == "unfinished":
        output(place, shards=[0])
    with pytest.raises(InputError, match=r"^[^\n]+ is not the finished output of a job[^\n]+$"):
        ask(str(place))


# --- failures ---------------------------------------------------------------------------------


@every_format
def test_failures_come_again_with_the_users_columns(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    user = pa.table({"uri": [f"mine {row}" for row in range(200)], "weight": [1.5] * 200})
    made = output(
        tmp_path,
        rows=200,
        failed={0, 17, 199},
        user=user,
        rows_per_file=50,
        output_format=output_format,
    )
    made.commit()
    again = failures_of(str(tmp_path))
    assert again.user_schema.equals(user.schema)
    rows = pa.concat_tables(list(again.tables))
    assert rows.schema.names[: len(LISTING_SCHEMA)] == LISTING_SCHEMA.names
    assert rows.column(0).to_pylist() == [f"/images/{row}.png" for row in (0, 17, 199)]
    assert rows.column(len(LISTING_SCHEMA)).to_pylist() == ["mine 0", "mine 17", "mine 199"]


def test_failures_are_the_inputs_of_another_job_and_of_another(tmp_path: Path) -> None:
    user = pa.table({"name": [f"n{row}" for row in range(40)]})
    output(tmp_path / "1", rows=40, failed={3, 4, 30}, user=user).commit()
    again = failures_of(str(tmp_path / "1"))
    second = output(tmp_path / "2", failed={0, 2}, tables=_as_listed(again))
    second.commit()
    third = failures_of(str(tmp_path / "2"))
    rows = pa.concat_tables(list(third.tables))
    assert rows.column(0).to_pylist() == ["/images/3.png", "/images/30.png"]
    assert third.user_schema.names == ["name"]
    assert rows.column(len(LISTING_SCHEMA)).to_pylist() == ["n3", "n30"]


def _as_listed(listed: Any) -> list[pa.Table]:
    schema = pa.schema([*LISTING_SCHEMA, *listed.user_schema])
    return [table.rename_columns(schema.names) for table in listed.tables]


def packed(rows: int) -> pa.Table:
    """Make a listing of members of an archive, a row without bytes among them."""
    container = "s3://bucket/a.tar"
    return pa.table(
        [
            pa.array([f"tar://{row}.png::{container}" for row in range(rows)]),
            pa.array([100] * rows, pa.int64()),
            pa.array([f"etag:{row}" for row in range(rows)]),
            pa.array(["tar"] * rows),
            pa.array([container] * rows),
            pa.array([512 * row if row else None for row in range(rows)], pa.int64()),
        ],
        schema=LISTING_SCHEMA,
    )


def test_packed_images_that_failed_are_found_in_their_archive_again(tmp_path: Path) -> None:
    whole = packed(20)
    output(tmp_path, failed={0, 7}, tables=[whole]).commit()
    again = pa.concat_tables(list(failures_of(str(tmp_path)).tables))
    assert again.to_pylist() == whole.take([0, 7]).to_pylist()


def test_an_image_named_twice_that_failed_once_comes_again_once(tmp_path: Path) -> None:
    output(tmp_path, rows=3, uris=["/a", "/a", "/b"], failed={1}).commit()
    again = pa.concat_tables(list(failures_of(str(tmp_path)).tables))
    assert again.column("uri").to_pylist() == ["/a"]


def test_a_job_without_failures_has_nothing_to_run_again(tmp_path: Path) -> None:
    output(tmp_path).commit()
    with pytest.raises(InputError, match="nothing to run again"):
        failures_of(str(tmp_path))


# --- what is known ----------------------------------------------------------------------------


def left(tables: Sequence[pa.Table], *outputs: Path) -> list[str]:
    known = skip_known(tables, [str(place) for place in outputs])
    return [uri for table in known for uri in table.column(0).to_pylist()]


def test_new_and_changed_inputs_are_left(tmp_path: Path) -> None:
    output(tmp_path, rows=3, uris=["/a", "/b", "/c"], versions=["1", "1", ""], failed={0}).commit()
    now = listing(5, uris=["/c", "/new", "/b", "/a", "/b"], versions=["", "1", "2", "1", "1"])
    assert left([now], tmp_path) == ["/new", "/b"]


def test_images_known_to_several_jobs_together_are_skipped(tmp_path: Path) -> None:
    output(tmp_path / "1", rows=2, uris=["/a", "/b"]).commit()
    second = list(skip_known([listing(3, uris=["/a", "/b", "/c"])], [str(tmp_path / "1")]))
    output(tmp_path / "2", tables=second).commit()
    now = [listing(2, uris=["/d", "/a"]), listing(2, uris=["/c", "/b"])]
    assert left(now, tmp_path / "1", tmp_path / "2") == ["/d"]
    assert left(now, tmp_path / "2") == ["/d", "/a", "/b"]


def test_a_users_columns_with_names_of_ours_change_nothing(tmp_path: Path) -> None:
    user = pa.table({"version": ["x", "y"], "uri": ["/q", "/r"], "size": [1, 2]})
    output(tmp_path, rows=2, uris=["/a", "/b"], user=user).commit()
    now = listing(2, uris=["/a", "/c"], user=user)
    (rows,) = skip_known([now], [str(tmp_path)])
    assert rows.schema == now.schema
    assert rows.column(0).to_pylist() == ["/c"]
    assert rows.column(len(LISTING_SCHEMA)).to_pylist() == ["y"]


def test_a_uri_and_its_version_are_not_confused(tmp_path: Path) -> None:
    output(tmp_path, rows=2, uris=["/a1", "/b"], versions=["2", "v"]).commit()
    now = listing(2, uris=["/a", "/a1"], versions=["12", "2"])
    assert left([now], tmp_path) == ["/a"]


def test_tables_without_rows_and_thousands_of_rows(tmp_path: Path) -> None:
    output(tmp_path, rows=1500).commit()
    now = [listing(0), listing(1502), listing(0)]
    assert left(now, tmp_path) == ["/images/1500.png", "/images/1501.png"]


def test_when_all_is_known_it_is_said(tmp_path: Path) -> None:
    output(tmp_path, rows=3).commit()
    with pytest.raises(InputError, match="No input is new or changed since"):
        left([listing(3), listing(2)], tmp_path)


def test_a_read_of_results_needs_no_shards_and_no_page(tmp_path: Path) -> None:
    made = output(tmp_path, rows=3)
    made.commit()
    storage.delete(made.layout.success)
    assert sum(part.num_rows for part in read_results(str(tmp_path))) == 3
