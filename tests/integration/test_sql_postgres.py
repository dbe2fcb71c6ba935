"""Results in a real PostgreSQL: refusals, readers, kills, and two who write at once."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from eagleray.batch.sinks.sql import SqlSink
from eagleray.core.errors import InputError, JobFailedError
from eagleray.database.connection import lock_for_transaction
from tests.support.postgres import PASSWORD, USER, PostgresServer
from tests.support.sql_contract import RESULTS, SqlContract, connect, execute, query, results


@pytest.fixture(scope="module")
def shared_database(postgres: PostgresServer) -> str:
    """One database for many tests: making one writes thousands of files."""
    return postgres.new_database()


@pytest.fixture
def url(postgres: PostgresServer, shared_database: str) -> Iterator[str]:
    """A database without tables."""
    yield postgres.url(shared_database)
    postgres.run(
        shared_database,
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC",
    )


class TestPostgresql(SqlContract):
    kept = 1


# --- refused before any work ------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("127.0.0.1", "nowhere.invalid"), "failed to resolve host 'nowhere.invalid'"),
        (("127.0.0.1:{port}", "127.0.0.1:{closed}"), r"\(Connection refused\); check the host"),
        (("127.0.0.1:{port}", "localhost:{closed}"), r"\(Connection refused\)"),
        ((PASSWORD, "wrong"), f'password authentication failed for user "{USER}"'),
        ((f":{PASSWORD}", ""), "no password supplied"),
        (("test_", "no_test_"), 'database "no_test_.*" does not exist'),
        (("test_", "?nonsense=1&dbname=test_"), 'invalid .*option "nonsense"'),
    ],
)
def test_a_database_that_is_not_reached_is_refused(
    postgres: PostgresServer, url: str, change: tuple[str, str], message: str
) -> None:
    numbers = {"port": postgres.port, "closed": closed_port()}
    old, new = (part.format(**numbers) for part in change)
    target = SqlSink.parse(url.replace(old, new), "results")
    with pytest.raises(InputError, match=message) as caught:
        target.require_ready(RESULTS)
    assert PASSWORD not in str(caught.value)
    assert str(caught.value).startswith(f"Cannot connect to {target.database.place} (")
    assert "\n" not in str(caught.value)
    with pytest.raises(JobFailedError, match=message):
        target.load("night", [results()])


def test_a_server_that_never_responds_is_refused_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sink = SqlSink.parse(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/db", "results")
        with pytest.raises(InputError, match="connection timeout expired"):
            replace(sink, ready_timeout=2.0).require_ready(RESULTS)  # libpq's minimum


def test_a_missing_schema_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r'\(schema "lab" does not exist\)'):
        SqlSink.parse(url, "lab.results").require_ready(RESULTS)


@pytest.fixture
def guest(postgres: PostgresServer, url: str) -> Iterator[str]:
    """The URL of a user without rights."""
    database = url.rsplit("/", 1)[1]
    postgres.run("postgres", f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    yield postgres.url(database, user="guest")
    postgres.run(database, "DROP OWNED BY guest; DROP ROLE guest")


def test_missing_rights_are_refused(url: str, guest: str) -> None:
    with pytest.raises(InputError, match=r"\(permission denied for schema public\)"):
        SqlSink.parse(guest, "results").require_ready(RESULTS)
    SqlSink.parse(url, "results").load("night", [results()])
    for right in ("SELECT", "DELETE", "SELECT, DELETE"):
        execute(url, "REVOKE ALL ON results FROM guest", f"GRANT {right} ON results TO guest")
        with pytest.raises(InputError, match=r"\(permission denied for table results\)"):
            SqlSink.parse(guest, "results").require_ready(RESULTS)
    execute(url, "GRANT SELECT, DELETE, INSERT ON results TO guest")
    SqlSink.parse(guest, "results").require_ready(RESULTS)
    assert SqlSink.parse(guest, "results").load("day", [results()]) == 3


def test_a_database_that_is_read_only_is_refused(postgres: PostgresServer) -> None:
    database = postgres.new_database()
    postgres.run("postgres", f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises(InputError, match="cannot execute CREATE TABLE in a read-only transaction"):
        SqlSink.parse(postgres.url(database), "results").require_ready(RESULTS)


def test_a_database_that_cannot_hold_every_name_is_refused(postgres: PostgresServer) -> None:
    url = postgres.url(postgres.new_database(encoding="LATIN1"))
    with pytest.raises(InputError, match="keeps text as LATIN1, which cannot hold every name"):
        SqlSink.parse(url, "results").require_ready(RESULTS)


def test_a_table_that_is_kept_locked_is_refused(url: str) -> None:
    import psycopg

    target = replace(SqlSink.parse(url, "results"), ready_timeout=0.1, load_timeout=0.1)
    target.load("night", [results()])
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE results")
        with pytest.raises(InputError, match=r"\(canceling statement due to lock timeout\)"):
            target.require_ready(RESULTS)
        with pytest.raises(JobFailedError, match=r"\(canceling statement due to lock timeout\)"):
            target.load("night", [results()])


WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

# --- what PostgreSQL does otherwise -----------------------------------------------------------


def test_names_longer_than_63_bytes_are_cut_and_must_still_differ(url: str) -> None:
    long = "ä" * 40  # 80 bytes
    table = results(**{f"{long}1": pa.array([1, 2, 3])})
    target = SqlSink.parse(url, "results")
    for _ in range(2):
        target.require_ready(table.schema)
        target.load("night", [table])
    assert query(url, f'SELECT sum("{"ä" * 31}") FROM results') == [(6,)]
    table = table.append_column(f"{long}2", pa.array([1, 2, 3]))
    with pytest.raises(
        InputError, match=f"Columns '{long}1' and '{long}2' would have the same name"
    ):
        target.require_ready(table.schema)


def test_columns_may_differ_by_case_alone(url: str) -> None:
    target = SqlSink.parse(url, "results")
    table = results(Label=pa.array(["a", "b", "c"]))
    target.require_ready(table.schema)
    target.load("night", [table])
    assert query(url, 'SELECT label, "Label" FROM results WHERE "row" = 1') == [("cat", "b")]


def test_a_table_in_a_schema(url: str) -> None:
    execute(url, 'CREATE SCHEMA "My lab"')
    target = SqlSink.parse(url, "My lab.results")
    for _ in range(2):
        target.require_ready(RESULTS)
        assert target.load("night", [results()]) == 3
    assert query(url, 'SELECT count(*) FROM "My lab".results') == [(3,)]


def test_not_a_number_stays_one(url: str) -> None:
    table = results(value=pa.array([float("nan"), 1.5, None]))
    SqlSink.parse(url, "results").load("night", [table])
    assert query(url, "SELECT value::text FROM results") == [("NaN",), ("1.5",), (None,)]


def test_nested_columns_can_be_requested(url: str) -> None:
    SqlSink.parse(url, "results").load("night", [results()])
    found = query(url, "SELECT DISTINCT top_k->0->>'label', labels ? 'pet' FROM results")
    assert found == [("cat", True)]


def test_a_reader_sees_the_former_rows_until_all_new_ones_are_there(url: str) -> None:
    target = SqlSink.parse(url, "results")
    target.load("night", [results(count=2)])
    seen: list[int] = []

    def watched() -> Iterator[pa.Table]:
        for number in range(5):
            yield results(first=20_000 * number, count=20_000)
            seen.append(query(url, "SELECT count(*) FROM results")[0][0])

    target.load("night", watched())
    assert seen == [2] * 5
    assert query(url, "SELECT count(*) FROM results") == [(100_000,)]


def test_other_jobs_do_not_wait(url: str) -> None:
    target = SqlSink.parse(url, "results")

    def tables() -> Iterator[pa.Table]:
        yield results(count=2)
        assert target.load("day", [results()]) == 3
        target.require_ready(RESULTS)
        yield results(first=2, count=2)

    target.load("evening", [results()])
    assert target.load("night", tables()) == 4
    assert query(url, "SELECT count(*) FROM results") == [(10,)]


def test_a_table_that_another_job_is_just_creating_is_waited_for(url: str) -> None:
    target = SqlSink.parse(url, "results")
    answers: list[int] = []
    loading = threading.Thread(target=lambda: answers.append(target.load("day", [results()])))
    with connect(url).begin() as other:
        lock_for_transaction(other, "create a table")
        target._define(RESULTS).create(other)
        loading.start()
        while loading.is_alive() and not query(url, WAITING):
            pass
        assert loading.is_alive()
    loading.join(60)
    assert answers == [3]


def test_a_database_whose_transactions_are_serializable(postgres: PostgresServer) -> None:
    """There a load that waited for another would not see what the other one put in."""
    database = postgres.new_database()
    postgres.run(
        "postgres", f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"
    )
    SqlContract().test_two_loads_of_one_job_wait_for_each_other(postgres.url(database))


def test_a_connection_that_breaks_is_one_sentence_and_leaves_the_table(
    postgres: PostgresServer, url: str
) -> None:
    target = SqlSink.parse(url, "results")
    target.load("night", [results(count=2)])

    def tables() -> Iterator[pa.Table]:
        yield results(count=20_000)
        postgres.run(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{url.rsplit('/', 1)[1]}'",
        )
        yield results(first=20_000, count=20_000)

    with pytest.raises(
        JobFailedError, match="Job night was not put into table results of"
    ) as caught:
        target.load("night", tables())
    assert "\n" not in str(caught.value)
    assert query(url, "SELECT count(*) FROM results") == [(2,)]
    assert target.load("night", [results()]) == 3


KILLED = """
import os, signal, sys
from eagleray.batch.sinks.sql import SqlSink
from tests.support.sql_contract import results
def tables():
    yield results(count=50_000)
    os.kill(os.getpid(), signal.SIGKILL)
SqlSink.parse(sys.argv[1], "results").load("night", tables())
"""


def test_a_killed_load_leaves_nothing_and_can_be_done_again(url: str) -> None:
    target = SqlSink.parse(url, "results")
    target.load("night", [results(count=2)])
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, url], cwd=root, check=False)
    assert killed.returncode == -9
    assert query(url, "SELECT count(*) FROM results") == [(2,)]
    assert target.load("night", [results(count=5)]) == 5  # and waits for nobody who is dead
    assert query(url, "SELECT count(*) FROM results") == [(5,)]
