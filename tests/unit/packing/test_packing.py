"""Packing without Ray: bytes in are bytes out, every input accounted for, whatever is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.cli.console import Console
from eagleray.core.errors import InputError, JobFailedError, OutputExistsError, UserError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.packing.job import PackJob, PackShards, PackSummary, open_pack, run_pack
from eagleray.packing.receipt import PackedShard
from eagleray.packing.sizes import ExpectedSizes
from eagleray.packing.spec import PackSpec
from eagleray.packing.worker import PackContext, pack_shard
from eagleray.sharded.manifest import ManifestReader, ShardLimits, write_manifest
from eagleray.sources import LISTING_SCHEMA, InputSpec, open_inputs
from tests.support.batch import NO_COLUMNS, Killed, dies_at, listing, output
from tests.support.images import encode, photo

FORMATS = pytest.mark.parametrize("part_format", ["parquet", "webdataset"])
QUIET = Console(json_output=True)
ONE_CORE = Cluster(num_cpus=1, num_gpus=0, embedded=True)
MIB = 2**20

JPEG = encode(photo(40, 30), "jpeg")
PNG = encode(photo(20, 10), "png")
PNG_HEADER = PNG[:33]
ODD: dict[str, bytes] = {
    "a b.jpg": JPEG,
    "ü%20#?.png": PNG,
    "new\nline.png": PNG + b"trailing",
    "deep/er/no-suffix": JPEG,
    "empty.png": b"",
    "a::b.tiff": b"not an image",
    "'\"$;.jpg": bytes(range(256)),
}


def write_files(folder: Path, files: Mapping[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def numbered(count: int, *, size: int = 1000) -> dict[str, bytes]:
    """Make files of one size whose contents differ; by their headers they are PNGs."""
    generator = np.random.default_rng(0)
    rest = size - len(PNG_HEADER)
    return {f"{index:03d}.jpg": PNG_HEADER + generator.bytes(rest) for index in range(count)}


def request(source: str, target: Path | str, **overrides: Any) -> PackSpec:
    spec = PackSpec.make({"inputs": (source,), "output": str(target)})
    return spec.model_copy(update=overrides)  # tests pack into smaller files than users may


def opened(asked: PackSpec) -> PackJob:
    return open_pack(asked, Settings(), QUIET)


def run(job: PackJob, pack_shards: PackShards) -> PackSummary:
    return run_pack(job, lambda: ONE_CORE, QUIET, pack_shards=pack_shards)


def here(shards: Sequence[int], context: PackContext, *_: Cluster) -> Iterator[PackedShard]:
    """Do what the workers do, in this process."""
    for shard in shards:
        yield pack_shard(context, shard)


def nobody(shards: Sequence[int], context: PackContext, *_: Cluster) -> Iterator[PackedShard]:
    raise AssertionError(f"shards {shards} are packed again")


def pack(source: str, target: Path | str, **overrides: Any) -> PackSummary:
    return run(opened(request(source, target, **overrides)), here)


def read_back(location: Path | str) -> list[bytes]:
    """Read every image as a job does that is given this input."""
    reader = ImageReader(128 * MIB)
    return [reader.read(source) for source in sources(location)]


def sources(location: Path | str) -> list[ImageSource]:
    names = ("uri", "size", "packing", "container", "offset")
    tables = open_inputs(InputSpec((str(location),))).tables
    return [
        ImageSource(*(record[name] for name in names))
        for table in tables
        for record in table.select(range(len(LISTING_SCHEMA))).to_pylist()
    ]


def parts_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[p_]*.[pt]*"))}


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return content


# --- what is packed ---------------------------------------------------------------------------


@FORMATS
def test_bytes_come_back_as_they_were(tmp_path: Path, part_format: str) -> None:
    folder = write_files(tmp_path / "in", ODD)
    summary = pack(folder, tmp_path / "out", format=part_format)
    assert (summary.committed.num_rows, summary.committed.num_ok) == (len(ODD), len(ODD))
    expected = [Path(source.uri).read_bytes() for source in sources(folder)]
    assert sorted(expected) == sorted(ODD.values())
    assert read_back(tmp_path / "out") == expected


@FORMATS
@pytest.mark.parametrize("again", ["parquet", "webdataset"])
def test_packed_images_can_be_packed_again(tmp_path: Path, part_format: str, again: str) -> None:
    folder = write_files(tmp_path / "in", numbered(20))
    pack(folder, tmp_path / "first", format=part_format, file_size="7000")
    pack(str(tmp_path / "first"), tmp_path / "second", format=again)
    assert read_back(tmp_path / "second") == list(numbered(20).values())
    assert manifest_of(tmp_path / "first")["num_rows"] == 20


def test_a_parquet_part_says_where_each_image_came_from(tmp_path: Path) -> None:
    files = numbered(600)
    folder = write_files(tmp_path / "in", files)
    pack(folder, tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["image", "uri"]
    assert table.column("uri").to_pylist() == [f"{folder}/{name}" for name in files]
    assert table.column("image").to_pylist() == list(files.values())
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [256, 256, 88]


def test_row_groups_of_large_images_are_small(tmp_path: Path) -> None:
    large = {f"{index}.jpg": bytes([index]) * (12 * MIB) for index in range(5)}
    pack(write_files(tmp_path / "in", large), tmp_path / "out")
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [2, 2, 1]


def test_tar_members_are_named_by_row_and_actual_format(tmp_path: Path) -> None:
    files = {
        "0.png": JPEG,
        "1": PNG,
        "2.JPG": JPEG[:20],
        "3.heic": b"\0\0\0\x18ftypheic",
        "4": b"7",
        "5.json": b"{}",
        "6.tiff": encode(photo(8, 8), "tiff"),
    }
    pack(write_files(tmp_path / "in", files), tmp_path / "out", format="webdataset")
    with tarfile.open(tmp_path / "out" / "part-00000.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[::2]] == [
            *("000000000.jpg", "000000001.png", "000000002.jpg", "000000003.heic"),
            *("000000004.bin", "000000005.bin", "000000006.tif"),
        ]
        assert [member.name for member in members[1::2]] == [f"{n:09d}.json" for n in range(7)]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "", "", 0o644)
        }
        notes = [json.load(archive.extractfile(member) or io.BytesIO()) for member in members[1::2]]
    assert notes == [{"uri": f"{tmp_path}/in/{name}"} for name in files]


COLUMNS = {
    "path": ["in/a b.jpg", "in/nowhere.jpg", "in/ü%20#?.png"],
    "uri": ["mine", "yours", None],
    "image": [1, 2, 3],
    "input_image": [0.5, float("nan"), None],
    "tags": [["x"], [], None],
    "when": pa.array([0, 1, None], pa.timestamp("ms")),
    "reason": ["why", "not", "this"],
}


@pytest.fixture
def table(tmp_path: Path) -> str:
    write_files(tmp_path / "in", ODD)
    pq.write_table(pa.table(COLUMNS), tmp_path / "list.parquet")
    return str(tmp_path / "list.parquet")


def test_the_users_columns_come_along(tmp_path: Path, table: str) -> None:
    pack(table, tmp_path / "out", column="path")
    packed = pq.read_table(tmp_path / "out")
    assert packed.column_names == [
        *("image", "uri", "input_uri", "input_image_2", "input_image", "tags", "when"),
        "reason",
    ]
    own = pa.table(COLUMNS).take([0, 2])
    assert packed.column("input_uri").to_pylist() == ["mine", None]
    assert packed.column("input_image_2").to_pylist() == [1, 3]
    for name in ("input_image", "tags", "when", "reason"):
        assert packed.column(name).to_pylist() == own.column(name).to_pylist()
    assert packed.schema.field("when").type == pa.timestamp("ms")
    listed = open_inputs(InputSpec((str(tmp_path / "out"),)))
    assert listed.user_schema.names == packed.column_names[1:]


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


def test_the_users_columns_come_along_as_json(tmp_path: Path, table: str) -> None:
    pack(table, tmp_path / "out", column="path", format="webdataset")
    with tarfile.open(tmp_path / "out" / "part-00000.tar") as archive:
        assert archive.getnames()[::2] == ["000000000.jpg", "000000002.png"]
        first = json.load(archive.extractfile("000000000.json") or io.BytesIO())
    assert first == {
        "uri": f"{tmp_path}/in/a b.jpg",
        "input_uri": "mine",
        "input_image_2": 1,
        "input_image": 0.5,
        "tags": ["x"],
        "when": "1970-01-01 00:00:00.000",
        "reason": "why",
    }


# --- parts ------------------------------------------------------------------------------------


@FORMATS
def test_parts_have_the_size_that_was_asked_for(tmp_path: Path, part_format: str) -> None:
    folder = write_files(tmp_path / "in", numbered(20))
    pack(folder, tmp_path / "out", format=part_format, file_size="7000")
    manifest = manifest_of(tmp_path / "out")
    assert [(part["first_row"], part["num_rows"]) for part in manifest["files"]] == [
        (0, 7),
        (7, 7),
        (14, 6),
    ]
    for part in manifest["files"]:
        content = (tmp_path / "out" / part["name"]).read_bytes()
        assert part["num_bytes"] == len(content)
        assert part["sha256"] == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert manifest["image_bytes"] == 20_000
    assert not (tmp_path / "out" / "_failures.parquet").exists()
    assert not (tmp_path / "out" / "_eagleray" / "shards").exists()


@FORMATS
def test_the_same_images_give_the_same_bytes(tmp_path: Path, part_format: str) -> None:
    folder = write_files(tmp_path / "in", {**ODD, **numbered(20)})
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    for name in ("one", "two"):
        pack(folder, tmp_path / name, format=part_format, file_size="7000")
    one = parts_of(tmp_path / "one")
    assert len(one) > 3
    assert one == parts_of(tmp_path / "two")


def in_memory(table: Path, files: Mapping[str, bytes]) -> str:
    """Put files where no listing tells their size, and list them in a table."""
    for name, content in files.items():
        fsspec.filesystem("memory").pipe_file(f"/{table.stem}/{name}", content)
    lines = ["uri", *(f"memory://{table.stem}/{name}" for name in files)]
    table.write_text("\n".join(lines))
    return str(table)


@FORMATS
def test_a_part_is_never_larger_whatever_was_expected(tmp_path: Path, part_format: str) -> None:
    files = numbered(10, size=300_000)  # 128 KiB is what is expected of each
    table = in_memory(tmp_path / "large.csv", files)
    pack(table, tmp_path / "out", format=part_format, file_size="1MiB")
    manifest = manifest_of(tmp_path / "out")
    names = [part["name"].partition(".")[0] for part in manifest["files"]]
    assert names == ["part-00000", "part-00000_00001", "part-00000_00002", "part-00001"]
    assert [part["first_row"] for part in manifest["files"]] == [0, 3, 6, 8]
    assert read_back(tmp_path / "out") == list(files.values())


def test_an_image_larger_than_a_part_has_one_of_its_own(tmp_path: Path) -> None:
    files = {"0.jpg": b"a" * 100, "1.jpg": b"b" * 5000, "2.jpg": b"c" * 100}
    pack(write_files(tmp_path / "in", files), tmp_path / "out", file_size="1000")
    assert [part["num_rows"] for part in manifest_of(tmp_path / "out")["files"]] == [1, 1, 1]


def test_tables_of_images_tell_what_their_images_take(tmp_path: Path) -> None:
    plain, nested = tmp_path / "plain.parquet", tmp_path / "nested.parquet"
    pq.write_table(
        pa.table({"x": ["y" * 100] * 50, "image": [b"%08d" % n for n in range(50)]}), plain
    )
    cells = [{"bytes": bytes([n]) * 2000, "path": "p"} for n in range(50)]
    pq.write_table(pa.table({"image": cells}), nested, use_dictionary=False)
    (tmp_path / "broken.parquet").write_text("no")
    uris = [f"parquet://image/0::{path}" for path in (plain, nested, tmp_path / "broken.parquet")]
    rows = listing(5, uris=[*uris, "s3://b/unknown", "/known"], sizes=[None] * 4 + [7])
    rows = rows.set_column(3, "packing", pa.array(["parquet"] * 3 + [None] * 2))
    containers = [uri.partition("::")[2] for uri in uris]
    rows = rows.set_column(4, "container", pa.array([*containers, None, None]))
    in_plain, in_nested, *others = ExpectedSizes()(rows).tolist()
    assert 8 <= in_plain <= 40
    assert 1900 <= in_nested <= 2200
    assert others == [128 * 1024, 128 * 1024, 7]


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


# --- what cannot be read ----------------------------------------------------------------------


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
    tmp_path: Path, faulty: str, part_format: str
) -> None:
    summary = pack(faulty, tmp_path / "out", format=part_format)
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


def test_bytes_of_unknown_number_are_counted(tmp_path: Path) -> None:
    files = {"fits": b"a" * 1000, "not": b"b" * 1001}
    job = opened(request(in_memory(tmp_path / "count.csv", files), tmp_path / "out"))

    def strictly(shards: list[int], context: PackContext, *_: Cluster) -> Iterator[PackedShard]:
        return here(shards, dataclasses.replace(context, max_bytes=1000))

    assert run(job, strictly).reasons == {"too_many_bytes": 1}
    assert read_back(tmp_path / "out") == [b"a" * 1000]


@FORMATS
def test_a_part_of_nothing_but_failures_is_none(tmp_path: Path, part_format: str) -> None:
    lines = ["path", *(f"gone-{number}.jpg" for number in range(3))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    summary = pack(str(tmp_path / "list.csv"), tmp_path / "out", format=part_format)
    assert (summary.committed.files, summary.committed.num_failed) == ((), 3)
    assert list(parts_of(tmp_path / "out")) == ["_failures.parquet"]


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


# --- stopped, and run again -------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@FORMATS
def test_a_killed_run_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, part_format: str, after: bool
) -> None:
    folder = write_files(tmp_path / "in", numbered(12))
    (tmp_path / "in" / "005.jpg").unlink()
    (tmp_path / "in" / "005.jpg").symlink_to("nowhere")
    options: dict[str, Any] = {"format": part_format, "file_size": "4000"}
    pack(folder, tmp_path / "whole", **options)
    for call in range(100):
        killed = tmp_path / f"killed-{call}"
        with pytest.MonkeyPatch.context() as patch:
            changes = dies_at(patch, call, after=after)
            with contextlib.suppress(Killed):
                pack(folder, killed, **options)
        summary = pack(folder, killed, **options)
        assert parts_of(killed) == parts_of(tmp_path / "whole")
        assert summary.committed.files == tuple(
            type(part)(**part_json)
            for part, part_json in zip(
                summary.committed.files, manifest_of(tmp_path / "whole")["files"], strict=True
            )
        )
        private = sorted(path.name for path in (killed / "_eagleray").rglob("*") if path.is_file())
        assert private == ["part-00000.parquet", "plan.json", "progress.json"]
        if len(list(changes())) <= call:
            break
    assert call > 10


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", numbered(10))
    job = opened(request(folder, tmp_path / "out", file_size="3000"))
    list(here([0, 2], job.context))
    packed: list[int] = []

    def rest(shards: list[int], context: PackContext, *_: Cluster) -> Iterator[PackedShard]:
        packed.extend(shards)
        return here(shards, context)

    summary = run(job, rest)
    assert packed == [1, 3]
    assert (summary.packed_here, summary.committed.num_rows) == (4, 10)
    again = run(opened(request(folder, tmp_path / "out", file_size="3000")), nobody)
    assert (again.committed, again.committed_here) == (summary.committed, False)


def orphan(tmp_path: Path) -> tuple[str, Path]:
    """Leave a part without a receipt, as a kill between the two does, and change its input."""
    folder = write_files(tmp_path / "in", numbered(4))
    job = opened(request(folder, tmp_path / "out"))
    list(here([0], job.context))
    receipt = Path(job.layout.shard(0))
    content = receipt.read_bytes()
    receipt.unlink()
    write_files(tmp_path / "in", {"000.jpg": b"x" * 1000})
    receipt.with_name("kept").write_bytes(content)
    return folder, receipt


def test_an_input_that_changed_beside_a_kill_is_not_mixed_in(tmp_path: Path) -> None:
    folder, _ = orphan(tmp_path)
    with pytest.raises(JobFailedError, match="its inputs have changed since") as caught:
        pack(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "_manifest.json").exists()
    named = Path(str(caught.value).split(" was left", maxsplit=1)[0])
    named.unlink()  # as the sentence says
    pack(folder, tmp_path / "out")
    assert read_back(tmp_path / "out")[0] == b"x" * 1000


def test_a_run_beside_this_one_that_was_first_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, receipt = orphan(tmp_path)
    original = storage.put_if_absent

    def put_late(location: str, content: bytes) -> bool:
        if location.endswith("part-00000.parquet"):
            receipt.write_bytes(receipt.with_name("kept").read_bytes())
        return original(location, content)

    monkeypatch.setattr(storage, "put_if_absent", put_late)
    pack(folder, tmp_path / "out")
    assert read_back(tmp_path / "out") == list(numbered(4).values())


def test_a_part_that_the_standing_receipt_does_not_know_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    job = opened(request(str(tmp_path / "list.csv"), tmp_path / "out"))
    list(here([0], job.context))  # found nothing, and its receipt comes late
    receipt = Path(job.layout.shard(0))
    content = receipt.read_bytes()
    receipt.unlink()
    write_files(tmp_path, {"a.jpg": JPEG})
    original = storage.put_if_absent

    def put_late(location: str, own: bytes) -> bool:
        if location == str(receipt):
            receipt.write_bytes(content)
        return original(location, own)

    monkeypatch.setattr(storage, "put_if_absent", put_late)
    summary = run(job, here)
    assert (summary.committed.files, summary.committed.num_failed) == ((), 1)
    assert list(parts_of(tmp_path / "out")) == ["_failures.parquet"]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text("no")])
def test_a_part_that_was_tampered_with_is_not_committed(tmp_path: Path, change: Any) -> None:
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


# --- mistakes ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256 * 10**6),
        ("1.5 gb", 15 * 10**8),
        ("64MiB", 64 * MIB),
        ("64M", 64 * 10**6),
        ("1000000", 10**6),
        *((text, None) for text in ("999KB", "5GB", "MB", "-1MB", "256 bytes", "1e9", "")),
    ],
)
def test_sizes_are_read_as_they_are_written(text: str, size: int | None) -> None:
    fields = {"inputs": ["a"], "output": "b", "file_size": text}
    if size is not None:
        assert PackSpec.make(fields).file_bytes == size
        return
    with pytest.raises(InputError, match="file_size: write a size such as 256MB, from 1MB to 4GB"):
        PackSpec.make(fields)
