"""Results in SQLite, and what is refused before anything is connected to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from eagleray.batch.sinks.sql import SqlSink
from eagleray.core.errors import InputError
from tests.support.sql_contract import RESULTS, SqlContract, query, results


class TestSqlite(SqlContract):
    kept = 0

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/odd 100% name.db"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


# --- what is written on the command line ------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "table", "message"),
    [
        ("results.db", "results", "must look like sqlite:///results.db or postgresql://"),
        ("", "results", "must look like"),
        ("postgresql://user:hush@host:port/db", "results", "must look like"),
        ("postgresql://user:hu@sh@host/db", "results", "more than one @; write %40"),
        ("mysql://user:hush@host/db", "results", "SQLite or PostgreSQL, not 'mysql'"),
        ("sqlite://", "results", "A SQLite database is a file"),
        ("sqlite:///:memory:", "results", "A SQLite database is a file"),
        ("sqlite://results.db", "results", "sqlite:///results.db, three slashes"),
        ("sqlite:///a.db?mode=ro", "results", "takes no options"),
        ("sqlite:///a.db", "", "'' is not the name of a table"),
        ("sqlite:///a.db", "a\0b", "not the name of a table"),
        ("sqlite:///a.db", "main.results", "SQLite has no schemas"),
        ("postgresql://host/db", "a.b.c", "'a.b.c' is not the name of a table"),
        ("postgresql://host/db", ".b", "not the name of a table"),
        ("postgresql://host/db", "ä" * 32, "at most 63 bytes"),
    ],
)
def test_what_cannot_be_a_target_is_refused_at_once(url: str, table: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SqlSink.parse(url, table)
    assert "hu" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_nothing_that_is_shown_holds_the_password(scheme: str) -> None:
    url = f"{scheme}://user:hush%40home@host:1/db?sslmode=disable&password=hush"
    target = SqlSink.parse(url, "lab.results")
    assert str(target) == "table lab.results of postgresql://user@host:1/db"
    assert "hush" not in repr(target)
    assert (target.schema, target.name) == ("lab", "results")
    assert target.database.url.password == "hush@home"


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"run: pip install 'eagleray\[postgresql\]'"):
        SqlSink.parse("postgresql://host/db", "results")


def test_a_relative_file_is_the_one_in_the_folder_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = SqlSink.parse("sqlite:///results.db", "results")
    monkeypatch.chdir("/")
    target.load("night", [results()])
    assert query(f"sqlite:///{tmp_path}/results.db", "SELECT count(*) FROM results") == [(3,)]


# --- files that cannot be written -------------------------------------------------------------


@contextlib.contextmanager
def other_user() -> Iterator[None]:
    """Lose root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody reaches."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_file_that_may_only_be_read_is_refused(open_folder: Path) -> None:
    file = open_folder / "results.db"
    SqlSink.parse(f"sqlite:///{file}", "results").load("night", [results()])
    file.chmod(0o444)
    with (
        other_user(),
        pytest.raises(InputError, match=r"results.db \(attempt to write a readonly"),
    ):
        SqlSink.parse(f"sqlite:///{file}", "results").require_ready(RESULTS)


def test_a_folder_where_nothing_may_be_written_is_refused(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with other_user(), pytest.raises(InputError, match=r"\(unable to open database file\)"):
        SqlSink.parse(f"sqlite:///{open_folder}/results.db", "results").require_ready(RESULTS)


def test_a_missing_folder_a_folder_and_another_file_are_refused(tmp_path: Path) -> None:
    missing = SqlSink.parse(f"sqlite:///{tmp_path}/none/results.db", "results")
    with pytest.raises(InputError, match=f"There is no folder {tmp_path}/none for the SQLite"):
        missing.require_ready(RESULTS)
    with pytest.raises(InputError, match=r"\(unable to open database file\)"):
        SqlSink.parse(f"sqlite:///{tmp_path}", "results").require_ready(RESULTS)
    (tmp_path / "a.db").write_text("row,uri\n" * 1000)
    with pytest.raises(InputError, match=r"a.db \(file is not a database\)"):
        SqlSink.parse(f"sqlite:///{tmp_path}/a.db", "results").require_ready(RESULTS)


def test_a_file_that_another_program_keeps_locked_is_refused(file: Path) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sink = replace(SqlSink.parse(f"sqlite:///{file}", "results"), ready_timeout=0.0)
    with pytest.raises(InputError, match=r"\(database is locked\)"):
        sink.require_ready(RESULTS)
    other.close()


# --- what SQLite does otherwise ---------------------------------------------------------------


def test_columns_that_differ_by_case_alone_are_refused(file: Path) -> None:
    schema = RESULTS.append(pa.field("Label", pa.string()))
    with pytest.raises(InputError, match="Columns 'label' and 'Label' would have the same name"):
        SqlSink.parse(f"sqlite:///{file}", "results").require_ready(schema)


def test_not_a_number_is_null(file: Path) -> None:
    table = results(value=pa.array([float("nan"), 1.5, None]))
    SqlSink.parse(f"sqlite:///{file}", "results").load("night", [table])
    assert query(f"sqlite:///{file}", "SELECT value FROM results") == [(None,), (1.5,), (None,)]


def test_a_reader_sees_the_former_rows_until_all_new_ones_are_there(file: Path) -> None:
    url = f"sqlite:///{file}"
    target = SqlSink.parse(url, "results")
    target.load("night", [results(count=2)])
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[pa.Table]:
        yield results(count=100)
        begun.set()
        assert go_on.wait(60)

    loading = threading.Thread(target=lambda: target.load("night", slow()))
    loading.start()
    assert begun.wait(60)
    assert query(url, "SELECT count(*) FROM results") == [(2,)]
    go_on.set()
    loading.join(60)
    assert query(url, "SELECT count(*) FROM results") == [(100,)]


KILLED = """
import os, signal, sys
from eagleray.batch.sinks.sql import SqlSink
from tests.support.sql_contract import results
def tables():
    yield results(count=50_000)
    os.kill(os.getpid(), signal.SIGKILL)
SqlSink.parse(sys.argv[1], "results").load("night", tables())
"""


def test_a_killed_load_leaves_nothing_and_can_be_done_again(file: Path) -> None:
    url = f"sqlite:///{file}"
    target = SqlSink.parse(url, "results")
    target.load("night", [results(count=2)])
    root = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", KILLED, url], cwd=root, check=False)
    assert killed.returncode == -9
    assert query(url, "SELECT count(*) FROM results") == [(2,)]
    assert target.load("night", [results(count=5)]) == 5
    assert query(url, "SELECT count(*) FROM results") == [(5,)]
