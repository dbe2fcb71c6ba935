"""Manifest, shards, result rows, commit and report: the parts of a batch job that need no Ray."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eagleray.batch.commit import OutputLayout, commit, read_shards, require_free_output
from eagleray.batch.manifest import MANIFEST_SCHEMA, build_manifest
from eagleray.batch.report import ReportCollector, Totals, render_report
from eagleray.batch.results import RESULT_SCHEMA, encode_table, result_table
from eagleray.batch.shards import SHARD_COLUMN, cut_shards, shard_file
from eagleray.errors import InputError, JobFailedError, OutputExistsError, Reason, UserError
from eagleray.models.sources import LoadedModel
from eagleray.outcome import Outcome, Prediction
from eagleray.storage import join, put_atomic
from tests.unit.models_kit import small_package

# --- manifest ---------------------------------------------------------------------------------


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, format="PNG")


def test_a_folder_lists_every_file_at_any_depth_in_name_order(tmp_path: Path) -> None:
    odd = ["a b.png", "deep/er/ü%20#?.png", "new\nline.png", "no-extension", "z.txt"]
    write_images(tmp_path, *odd)
    (tmp_path / "deep" / "gone.png").symlink_to("nowhere")
    manifest = build_manifest([str(tmp_path)])
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.column("row").to_pylist() == list(range(6))
    names = [uri.removeprefix(f"{tmp_path}/") for uri in manifest.column("uri").to_pylist()]
    assert names == [
        "a b.png",
        "deep/er/ü%20#?.png",
        "deep/gone.png",
        "new\nline.png",
        "no-extension",
        "z.txt",
    ]
    assert manifest.column("size").to_pylist()[2] is None


def test_hidden_files_and_results_of_earlier_jobs_are_not_inputs(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", ".DS_Store", "_eagleray/x.png", "sub/_tmp.png")
    assert build_manifest([str(tmp_path)]).num_rows == 1


def test_a_hidden_folder_can_be_named(tmp_path: Path) -> None:
    write_images(tmp_path, "_private/1.png")
    assert build_manifest([str(tmp_path / "_private")]).num_rows == 1


def test_the_same_image_twice_is_two_inputs(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    image = str(tmp_path / "1.png")
    manifest = build_manifest([image, str(tmp_path), image])
    assert manifest.column("uri").to_pylist() == [image] * 3
    assert manifest.column("row").to_pylist() == [0, 1, 2]


def test_a_pattern_matches_at_any_depth(tmp_path: Path) -> None:
    write_images(tmp_path, "a/1.png", "a/b/2.png", "3.gif")
    assert build_manifest([f"{tmp_path}/**/*.png"]).num_rows == 2


def test_a_csv_resolves_relative_paths_beside_itself(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text('photo,who\n"a, b.png",x\n/else/where.png,y\ns3://bucket/c d.png,z\n')
    manifest = build_manifest([str(table)], column="photo")
    assert manifest.column("uri").to_pylist() == [
        f"{tmp_path}/a, b.png",
        "/else/where.png",
        "s3://bucket/c d.png",
    ]


@pytest.mark.parametrize(
    ("name", "content", "column", "sentence"),
    [
        ("nowhere", None, None, "There is no folder or file"),
        ("empty", "folder", None, "holds no files"),
        ("*.tif", None, None, "No file matches the pattern"),
        ("list.csv", "a,b\n1,2\n", None, "has no column named uri or path"),
        ("list.csv", "path\n1\n", "paht", "Nearest: path"),
        ("list.csv", "path\n", None, "has a header and no rows"),
        ("list.csv", None, None, "Cannot read"),
    ],
)
def test_inputs_that_cannot_be_are_one_sentence(
    tmp_path: Path, name: str, content: str | None, column: str | None, sentence: str
) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        build_manifest([str(path)], column=column)
    assert sentence in str(caught.value)


# --- shards -----------------------------------------------------------------------------------


def manifest(rows: int) -> pa.Table:
    return pa.table(
        {
            "row": pa.array(range(rows), pa.int64()),
            "uri": [f"/images/{row}.png" for row in range(rows)],
            "size": pa.array([None] * rows, pa.int64()),
            "version": [""] * rows,
        },
        schema=MANIFEST_SCHEMA,
    )


@given(st.integers(1, 5000), st.integers(1, 64))
def test_shards_hold_every_row_once_in_order(rows: int, workers: int) -> None:
    shards = cut_shards(manifest(rows), workers)
    assert [row for shard in shards for row in shard.column("row").to_pylist()] == list(range(rows))
    numbers = [set(shard.column(SHARD_COLUMN).to_pylist()) for shard in shards]
    assert numbers == [{number} for number in range(len(shards))]


def test_shards_are_many_enough_to_share_and_large_enough_to_be_worth_it() -> None:
    assert len(cut_shards(manifest(200), 2)) == 13
    assert [shard.num_rows for shard in cut_shards(manifest(20), 8)] == [16, 4]
    assert max(shard.num_rows for shard in cut_shards(manifest(40_000), 1)) == 1024


# --- results ----------------------------------------------------------------------------------


def model() -> LoadedModel:
    return LoadedModel("digits/3", small_package(name="digits"), "3")


def ok(label: str = "a", score: float = 0.75) -> Outcome:
    probabilities = np.asarray([score, 1 - score], np.float32)
    return Outcome(prediction=Prediction(label, score, (label,), None, probabilities), width=8)


def results(first_row: int, outcomes: list[Outcome]) -> pa.Table:
    rows = range(first_row, first_row + len(outcomes))
    return result_table(
        rows,
        [f"/images/{row}.png" for row in rows],
        outcomes,
        milliseconds=1.5,
        model=model(),
        top_k=5,
    )


BAD = Outcome.failed(Reason.TRUNCATED, 'the png data end early, says "decoder",\nso it is')


def test_a_row_tells_all_about_its_image() -> None:
    loaded = model()
    good, bad = results(7, [ok(), BAD]).to_pylist()
    assert good | {"score": 0.75} == good
    assert good["row"] == 7
    assert good["status"] == "ok"
    assert [entry["label"] for entry in good["top_k"]] == list(loaded.package.task.labels)[:2]
    assert good["reason"] is None
    assert good["model"] == "digits"
    assert good["model_version"] == "3"
    assert good["model_digest"] == loaded.package.digest
    assert good["contract_digest"] == loaded.package.contract.digest
    assert bad["status"] == "failed"
    assert bad["reason"] == "truncated"
    assert bad["label"] is None
    assert bad["score"] is None
    assert bad["contract_digest"] == loaded.package.contract.digest


def test_each_format_reads_back_what_was_written() -> None:
    table = results(0, [ok(), BAD])
    parquet = pyarrow.parquet.read_table(io.BytesIO(encode_table(table, "parquet")))
    assert parquet.to_pylist() == table.to_pylist()
    lines = encode_table(table, "jsonl").decode().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    rows = list(csv.DictReader(io.StringIO(encode_table(table, "csv").decode(), newline="")))
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert json.loads(rows[0]["top_k"]) == table.to_pylist()[0]["top_k"]
    assert rows[1]["message"] == table.to_pylist()[1]["message"]


# --- commit -----------------------------------------------------------------------------------


def put_shard(layout: OutputLayout, number: int, table: pa.Table) -> None:
    put_atomic(join(layout.shards, shard_file(number)), encode_table(table, "parquet"))


def test_commit_merges_shards_in_order_and_marks_the_output(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path / "out"))
    put_shard(layout, 1, results(2, [BAD]))
    put_shard(layout, 0, results(0, [ok(), ok("b", 0.25)]))
    parts = commit(layout, num_shards=2, num_rows=3, output_format="parquet")
    assert [Path(part).name for part in parts] == ["part-00000.parquet"]
    table = pyarrow.parquet.read_table(tmp_path / "out")  # as any reader would, the folder whole
    assert table.schema.equals(RESULT_SCHEMA)
    assert table.column("row").to_pylist() == [0, 1, 2]
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert not Path(layout.shards).exists()


@pytest.mark.parametrize(
    ("second", "num_rows", "sentence"),
    [
        (None, 3, "Shard 1 has no result"),
        (results(1, [BAD]), 3, "should start at row 2 holds other rows"),
        (results(2, [BAD]), 4, "4 images went in and 3 results came out"),
    ],
)
def test_lost_or_doubled_rows_stop_the_commit(
    tmp_path: Path, second: pa.Table | None, num_rows: int, sentence: str
) -> None:
    layout = OutputLayout(str(tmp_path / "out"))
    put_shard(layout, 0, results(0, [ok(), ok()]))
    if second is not None:
        put_shard(layout, 1, second)
    with pytest.raises(JobFailedError, match=sentence):
        commit(layout, num_shards=2, num_rows=num_rows, output_format="csv")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_eagleray"]


def test_an_output_that_holds_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    require_free_output(str(tmp_path / "out"))
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="never overwritten"):
        require_free_output(str(tmp_path / "out"))
    with pytest.raises(OutputExistsError, match="is a file"):
        require_free_output(str(tmp_path / "out" / "mine.txt"))


def test_an_output_that_cannot_be_written_is_said_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        require_free_output(str(tmp_path / "file" / "below"))


# --- report -----------------------------------------------------------------------------------


def test_the_report_counts_what_it_was_given_and_escapes_it(tmp_path: Path) -> None:
    image = tmp_path / "<b>.png"
    Image.new("RGB", (30, 20), "red").save(image, format="PNG")
    collector = ReportCollector()
    table = results(0, [ok("a", 0.9), ok("b", 0.2), ok("a", 0.6), BAD])
    uris = pa.array([str(image)] * 4)
    collector.add(table.set_column(1, RESULT_SCHEMA.field("uri"), uris))
    assert collector.labels == {"a": 2, "b": 1}
    assert collector.reasons == {"truncated": 1}
    assert [example.score for example in collector.least_confident] == pytest.approx(
        [0.2, 0.6, 0.9]
    )
    page = render_report(
        collector,
        Totals(4, 3, 1, seconds=2.0, first_result_seconds=0.5),
        [(0.5, 2), (2.0, 4)],
        {"model": "<script>alert(1)</script>"},
        model_name="digits/3",
    ).decode()
    assert "3 ok + 1 failed\n= 4 inputs" in page
    assert page.count("data:image/jpeg;base64,") == 6  # three least confident, three in classes
    assert page.count("<svg") == 4
    assert "<script>" not in page
    assert "<b>.png" not in page
    assert "&lt;b&gt;.png" in page


def test_the_report_keeps_the_least_confident_of_many() -> None:
    collector = ReportCollector()
    scores = np.random.default_rng(0).permutation(np.linspace(0.01, 0.99, 500)).tolist()
    for start in range(0, 500, 100):
        collector.add(results(start, [ok("a", score) for score in scores[start : start + 100]]))
    kept = [example.score for example in collector.least_confident]
    assert kept == pytest.approx(sorted(scores)[:20], abs=1e-6)
    assert sum(collector.score_counts) == 500


def test_shards_read_back_in_order(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    for number in (2, 0, 1):
        put_shard(layout, number, results(number, [ok()]))
    rows = [table.column("row")[0].as_py() for table in read_shards(layout, 3)]
    assert rows == [0, 1, 2]
