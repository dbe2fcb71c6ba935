"""The commit: all rows once or nothing, wherever a run dies and whoever runs beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.batch.earlier import read_results
from eagleray.batch.merge import merge
from eagleray.batch.results import result_schema
from eagleray.batch.shard_summary import ShardSummary, decode_shard, encode_shard
from eagleray.core.errors import InputError, JobFailedError
from eagleray.core.types import OutputFormat
from eagleray.io import storage
from eagleray.sharded.commit import Commit, publish, read_commit, tidy_up
from tests.support.batch import Killed, Output, classified, dies_at, output, result_rows


def committed_rows(made: Output) -> list[int]:
    rows: list[int] = []
    for file in read_results(made.layout.location, columns=["row"]):
        rows += file.column("row").to_pylist()
    return rows


def require_whole(made: Output) -> Commit:
    """Check a committed output against its own list of files and against the plan."""
    found = read_commit(made.layout)
    assert found is not None
    next_row = 0
    for file in found.files:
        content = (made.folder / file.name).read_bytes()
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.num_bytes == len(content)
        assert file.first_row == next_row
        next_row += file.num_rows
    assert next_row == found.num_rows == made.plan.num_rows
    assert committed_rows(made) == list(range(made.plan.num_rows))
    assert found.num_failed == len(made.failed)
    return found


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- the way it should go ---------------------------------------------------------------------


@pytest.mark.parametrize("output_format", ["parquet", "csv", "jsonl"])
def test_a_commit_lists_what_is_there(tmp_path: Path, output_format: OutputFormat) -> None:
    made = output(
        tmp_path, rows=100, failed={3, 50, 99}, rows_per_file=40, output_format=output_format
    )
    answer = made.commit()
    assert answer is not None
    assert answer[1]
    found = require_whole(made)
    assert answer[0] == found
    assert [
        (file.name, file.first_row, file.num_rows, file.num_failed) for file in found.files
    ] == [
        (f"part-00000.{output_format}", 0, 48, 1),
        (f"part-00001.{output_format}", 48, 48, 1),
        (f"part-00002.{output_format}", 96, 4, 1),
    ]
    assert (found.job_id, found.format) == (made.plan.job_id, output_format)
    manifest = f"_eagleray/{made.plan.manifest}"
    assert files_in(tmp_path) == {
        *(file.name for file in found.files),
        *("_manifest.json", "_SUCCESS", "_eagleray/plan.json"),
        *(f"{manifest}/part-00000.parquet", f"{manifest}/sizes.parquet"),
    }


def test_other_readers_see_the_files_and_nothing_else(tmp_path: Path) -> None:
    made = output(tmp_path, rows=100, rows_per_file=40)
    made.commit()
    table = pq.read_table(tmp_path)  # as any reader would, the folder whole
    assert table.schema.equals(result_schema(made.model, made.manifest.schema))
    assert table.column("row").to_pylist() == list(range(100))
    assert not table.schema.metadata


def test_files_are_cut_at_shards_and_the_last_one_is_never_empty(tmp_path: Path) -> None:
    for rows, per_part, expected in [(32, 16, [16, 16]), (32, 17, [32]), (33, 16, [16, 16, 1])]:
        made = output(tmp_path / f"{rows}-{per_part}", rows=rows, rows_per_file=per_part)
        made.commit()
        assert [file.num_rows for file in require_whole(made).files] == expected


def test_one_row_is_an_output(tmp_path: Path) -> None:
    made = output(tmp_path, rows=1, failed={0})
    made.commit()
    assert require_whole(made).num_failed == 1


def test_every_shard_is_shown_once_and_keeps_its_times(tmp_path: Path) -> None:
    made = output(tmp_path, rows=100, failed={3, 4, 90})
    shown: list[int] = []
    draft = merge(
        made.layout,
        made.plan,
        on_shard=lambda rows: shown.extend(rows.column("row").to_pylist()),
    )
    assert shown == list(range(100))
    assert draft is not None
    assert [one.shard for one in draft.timeline] == list(range(made.plan.num_shards))
    assert sum(one.num_failed for one in draft.timeline) == 3
    assert [one.finished - one.started for one in draft.timeline] == [1.0] * 7


def test_before_the_commit_there_is_nothing_to_read(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40)
    draft = merge(made.layout, made.plan)
    assert draft is not None
    assert read_commit(made.layout) is None
    with pytest.raises(InputError, match="not the finished output"):
        list(read_results(str(tmp_path)))
    assert publish(made.layout, draft.commit(made.plan))[1]
    assert committed_rows(made) == list(range(40))


def test_a_commit_of_the_version_before_is_read(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40, failed={3})
    made.commit()
    found = json.loads((tmp_path / "_manifest.json").read_text())
    found["parts"] = found.pop("files")
    (tmp_path / "_manifest.json").write_text(json.dumps(found))
    require_whole(made)


def test_a_manifest_of_a_later_version_is_one_sentence(tmp_path: Path) -> None:
    made = output(tmp_path)
    storage.put_atomic(made.layout.commit, b'{"parts": 3}')
    with pytest.raises(InputError, match="not written by this version"):
        read_commit(made.layout)


# --- what must not be committed ---------------------------------------------------------------


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def damage_pages(content: bytes) -> bytes:
    return flip(content, 60)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def of_others(content: bytes) -> bytes:
    del content
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"row": [1]}), sink)
    return bytes(sink.getvalue())


def empty(content: bytes) -> bytes:
    return content[:0]


@pytest.mark.parametrize("damage", [damage_pages, cut, of_others, empty])
def test_a_damaged_shard_is_removed_and_made_anew(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    made = output(tmp_path, rows=100, failed={40})
    location = made.layout.shard(2)
    storage.put_atomic(location, damage(storage.read_bytes(location)))
    with pytest.raises(JobFailedError, match="shard 2 was damaged"):
        merge(made.layout, made.plan)
    assert set(made.layout.finished_shards()) == {0, 1, 3, 4, 5, 6}
    made.put_shards([2])
    made.commit()
    require_whole(made)


def test_a_shard_that_is_missing_is_said(tmp_path: Path) -> None:
    made = output(tmp_path, rows=100, shards=[0, 1, 2, 4, 5, 6])
    with pytest.raises(JobFailedError, match="A shard has no result"):
        merge(made.layout, made.plan)
    assert read_commit(made.layout) is None


def shard(*rows: int) -> bytes:
    table = pa.concat_tables(result_rows([classified()], first_row=row) for row in rows)
    return encode_shard(table, ShardSummary(0, len(rows), 0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (shard(*range(15)), "The shards should hold rows 0 to 30 and hold others"),
        (shard(*range(16), 15), "should hold rows 0 to 32 and hold others"),
        (shard(*range(1, 17)), "should hold rows 0 to 31 and hold others"),
        (shard(*range(15, -1, -1)), "should hold rows 0 to 31 and hold others"),
    ],
    ids=["one lost", "one twice", "moved", "turned round"],
)
def test_lost_doubled_and_moved_rows_are_never_committed(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    made = output(tmp_path, rows=32)
    storage.put_atomic(made.layout.shard(0), content)
    with pytest.raises(JobFailedError, match=sentence):
        merge(made.layout, made.plan)
    assert read_commit(made.layout) is None


def test_rows_missing_at_the_end_are_never_committed(tmp_path: Path) -> None:
    made = output(tmp_path, rows=32)
    table, summary = decode_shard(storage.read_bytes(made.layout.shard(1)))
    storage.put_atomic(made.layout.shard(1), encode_shard(table.slice(0, 15), summary))
    with pytest.raises(JobFailedError, match="32 images went in and 31 results came out"):
        merge(made.layout, made.plan)
    assert read_commit(made.layout) is None


@pytest.mark.parametrize("output_format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("content", [b"", b"precious", b'{"a": 1}\n', b'"row"\n"x"\n'], ids=repr)
def test_a_strange_file_with_the_name_of_a_file_stops_the_commit(
    tmp_path: Path, output_format: OutputFormat, content: bytes
) -> None:
    made = output(tmp_path, rows=32, output_format=output_format)
    file = tmp_path / f"part-00000.{output_format}"
    file.write_bytes(content)
    with pytest.raises(JobFailedError, match=r"Remove it and run the same command again"):
        merge(made.layout, made.plan)
    assert file.read_bytes() == content
    file.unlink()
    made.commit()
    require_whole(made)


def test_a_file_with_rows_of_others_stops_the_commit(tmp_path: Path) -> None:
    other = output(tmp_path / "other", rows=48, rows_per_file=16)
    other.commit()
    made = output(tmp_path / "made", rows=32, rows_per_file=16)
    stolen = (other.folder / "part-00001.parquet").read_bytes()
    (made.folder / "part-00000.parquet").write_bytes(stolen)
    with pytest.raises(JobFailedError, match="should hold rows 0 to 15 and hold others"):
        merge(made.layout, made.plan)


# --- death and repetition ---------------------------------------------------------------------


def commit_dying_at(made: Output, call: int, *, after: bool) -> list[str]:
    """Commit with a death at a change of storage; return the changes that were begun."""
    with pytest.MonkeyPatch.context() as patch:
        begun = dies_at(patch, call, after=after)
        try:
            made.commit()
        except Killed:
            assert len(list(begun())) == call + 1
        return list(begun())


def crash_output(folder: Path, output_format: OutputFormat = "parquet") -> Output:
    made = output(folder, rows=80, failed={5, 77}, rows_per_file=30, output_format=output_format)
    # Of a run that lost the race for the plan and died, and of a write that was cut short.
    storage.put_atomic(
        storage.join(made.layout.manifest("manifest-lost"), "part-00000.parquet"), b""
    )
    (folder / ".part-00000.parquet.abc.tmp").write_bytes(b"half")
    return made


def what_a_commit_changes(folder: Path) -> list[str]:
    return commit_dying_at(crash_output(folder), 10**6, after=False)


def test_the_changes_of_a_commit_are_these_and_in_this_order(tmp_path: Path) -> None:
    changes = what_a_commit_changes(tmp_path)
    assert changes == [
        "put_if_absent part-00000.parquet",
        "put_if_absent part-00001.parquet",
        "put_if_absent part-00002.parquet",
        "put_if_absent _manifest.json",
        "put_atomic _SUCCESS",
        "remove_tree shards",
        "remove_tree manifest-lost",
        "delete .part-00000.parquet.abc.tmp",
    ]


NUM_CHANGES = 8


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(NUM_CHANGES))
def test_a_run_that_dies_anywhere_is_finished_by_the_next(
    tmp_path: Path, call: int, after: bool
) -> None:
    undisturbed = crash_output(tmp_path / "undisturbed")
    undisturbed.commit()
    made = crash_output(tmp_path / "made")
    commit_dying_at(made, call, after=after)
    if read_commit(made.layout) is not None:
        require_whole(made)  # readers may come at once
        tidy_up(made.layout, made.plan)
    else:
        assert made.commit() is not None
    found = require_whole(made)
    names = [file.name for file in found.files]
    assert [(made.folder / name).read_bytes() for name in names] == [
        (undisturbed.folder / name).read_bytes() for name in names
    ]
    assert {name for name in files_in(made.folder) if not name.startswith("_eagleray/")} == {
        *names,
        "_manifest.json",
        "_SUCCESS",
    }
    assert made.layout.abandoned_folders(made.plan.manifest) == []
    assert set(made.layout.finished_shards()) == set()


@settings(max_examples=25)
@given(
    deaths=st.lists(st.tuples(st.integers(0, NUM_CHANGES - 1), st.booleans()), max_size=5),
    again=st.sets(st.integers(0, 4)),
    output_format=st.sampled_from(["parquet", "csv", "jsonl"]),
)
def test_any_series_of_deaths_ends_in_every_row_once(
    deaths: list[tuple[int, bool]], again: set[int], output_format: OutputFormat
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = crash_output(Path(folder), output_format)
        kept: dict[str, bytes] = {}
        for call, after in deaths:
            if read_commit(made.layout) is None:
                commit_dying_at(made, call, after=after)
            if read_commit(made.layout) is None:
                made.put_shards(again, milliseconds=9.0)  # workers of a run that was thought dead
            parts = {path.name: path.read_bytes() for path in made.folder.glob("part-*")}
            assert {name: parts[name] for name in kept} == kept  # no file ever changes
            kept = parts
        if read_commit(made.layout) is None:
            made.commit()
        else:
            tidy_up(made.layout, made.plan)
        require_whole(made)
        assert (made.folder / "_SUCCESS").exists()


def test_what_follows_a_commit_can_be_repeated(tmp_path: Path) -> None:
    made = output(tmp_path)
    made.commit()
    before = files_in(tmp_path)
    tidy_up(made.layout, made.plan)
    assert files_in(tmp_path) == before
    require_whole(made)


# --- two runs at a time -----------------------------------------------------------------------


def test_the_later_of_two_runs_learns_that_it_was_not_first(tmp_path: Path) -> None:
    made = output(tmp_path, rows=80, rows_per_file=30)
    first, second = merge(made.layout, made.plan), merge(made.layout, made.plan)
    assert first is not None
    assert second is not None
    assert first.files == second.files
    committed, here = publish(made.layout, first.commit(made.plan))
    assert here
    assert publish(made.layout, second.commit(made.plan)) == (committed, False)
    require_whole(made)


def test_a_run_whose_shards_were_tidied_away_finds_the_commit(tmp_path: Path) -> None:
    made = output(tmp_path, rows=80)
    made.commit()
    assert merge(made.layout, made.plan) is None
    require_whole(made)


def test_a_run_with_other_times_takes_over_the_files_that_are_there(tmp_path: Path) -> None:
    made = output(tmp_path, rows=80, rows_per_file=30)
    commit_dying_at(made, 2, after=False)  # two of three files are there
    made.put_shards(milliseconds=9.0)
    made.commit()
    require_whole(made)
    times = pq.read_table(tmp_path).column("milliseconds").to_pylist()
    assert times == [*[1.5] * 64, *[9.0] * 16]


@pytest.mark.parametrize("output_format", ["parquet", "csv", "jsonl"])
def test_failures_are_counted_in_the_file_that_stands(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    """A time limit, say, may hit an image in one run and not in another."""
    made = output(tmp_path, rows=32, failed={3, 4}, rows_per_file=16, output_format=output_format)
    commit_dying_at(made, 0, after=True)
    dataclasses.replace(made, failed={3, 20}).put_shards()
    made.commit()
    found = read_commit(made.layout)
    assert found is not None
    assert [file.num_failed for file in found.files] == [2, 1]
    statuses = pa.concat_tables(read_results(str(tmp_path), columns=["status"])).column(0)
    assert [row for row, status in enumerate(statuses.to_pylist()) if status == "failed"] == [
        *(3, 4, 20)
    ]


@pytest.mark.parametrize(
    "interruptions", list(itertools.product(range(0, 8, 2), repeat=2)), ids=str
)
def test_a_run_that_stalls_while_another_works_changes_nothing(
    tmp_path: Path, interruptions: tuple[int, int]
) -> None:
    """One run stops at a change and goes on from there when others have come and gone."""
    made = output(tmp_path, rows=80, failed={5, 77}, rows_per_file=30)
    commit_dying_at(made, interruptions[0], after=True)
    with pytest.MonkeyPatch.context() as patch:
        begun = 0
        for name in ("put_if_absent", "put_atomic"):
            original = getattr(storage, name)

            def stalling(*arguments: object, original: Callable[..., object] = original) -> object:
                nonlocal begun
                begun += 1
                if begun == interruptions[1] + 1:
                    patch.undo()
                    made.commit()
                return original(*arguments)

            patch.setattr(storage, name, stalling)
        made.commit()
    if read_commit(made.layout) is None:
        made.commit()
    require_whole(made)


def test_of_many_runs_at_once_exactly_one_commits(tmp_path: Path) -> None:
    for attempt in range(5):
        made = output(tmp_path / str(attempt), rows=80, failed={5}, rows_per_file=30)
        start = threading.Barrier(6)
        answers: list[bool] = []
        faults: list[BaseException] = []

        def run(
            made: Output = made,
            start: threading.Barrier = start,
            answers: list[bool] = answers,
            faults: list[BaseException] = faults,
        ) -> None:
            start.wait()
            try:
                answer = made.commit()
                answers.append(answer is not None and answer[1])
            except BaseException as fault:  # noqa: BLE001 - it is asserted below
                faults.append(fault)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert sorted(answers) == [False] * 5 + [True]
        require_whole(made)
        assert files_in(made.folder) == {
            *("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"),
            *("_manifest.json", "_SUCCESS", "_eagleray/plan.json"),
            f"_eagleray/{made.plan.manifest}/part-00000.parquet",
            f"_eagleray/{made.plan.manifest}/sizes.parquet",
        }


def test_a_reader_never_sees_a_file_of_the_result(tmp_path: Path) -> None:
    made = output(tmp_path, rows=200, rows_per_file=16)
    seen: set[int] = set()
    begun, done = threading.Event(), threading.Event()

    def poll() -> None:
        while not done.is_set():
            found = read_commit(made.layout)
            rows = committed_rows(made) if found is not None else []
            assert rows in ([], list(range(200)))
            seen.add(len(rows))
            begun.set()

    reader = threading.Thread(target=poll)
    reader.start()
    begun.wait(30)
    made.commit()
    while 200 not in seen and reader.is_alive():
        begun.clear()
        begun.wait(30)
    done.set()
    reader.join()
    assert seen == {0, 200}


def test_the_manifest_is_json_that_others_can_read(tmp_path: Path) -> None:
    made = output(tmp_path, rows=40, failed={1})
    made.commit()
    found = json.loads((tmp_path / "_manifest.json").read_text())
    assert (found["num_rows"], found["num_failed"]) == (40, 1)
    assert [file["name"] for file in found["files"]] == ["part-00000.parquet"]
