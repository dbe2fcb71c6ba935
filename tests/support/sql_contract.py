"""What every database must do with results; a test class for each database inherits it."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from eagleray.batch.sinks.sql import SqlSink
from eagleray.core.errors import InputError, JobFailedError

RESULTS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("value", pa.float64()),
        pa.field("top_k", pa.list_(pa.struct({"label": pa.string(), "score": pa.float32()}))),
        pa.field("width", pa.int32()),
    ]
)


def results(first: int = 0, count: int = 3, **columns: pa.Array) -> pa.Table:
    """Result rows; further columns, or others of the same names, as keywords."""
    rows = range(first, first + count)
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "uri": [f"/photos/{row}.jpg" for row in rows],
            "status": ["ok"] * count,
            "label": ["cat"] * count,
            "score": [0.5] * count,
            "labels": [["cat", "pet"]] * count,
            "value": [None] * count,
            "top_k": [[{"label": "cat", "score": 0.5}]] * count,
            "width": [640] * count,
        },
        schema=RESULTS,
    )
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            table = table.append_column(name, values)
        else:
            table = table.set_column(index, name, values)
    return table


def connect(url: str) -> sa.Engine:
    """A connection of another program, for looking."""
    return sa.create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool
    )


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What another program reads."""
    with connect(url).connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def execute(url: str, *statements: str) -> None:
    """What another program does."""
    with connect(url).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def load_when_all_are_there(url: str, barrier: Any, answers: Any) -> None:
    """Load a job from a process of its own, at the same time as others."""

    def tables() -> Iterator[pa.Table]:
        for number in range(20):
            yield results(first=100 * number, count=100)

    barrier.wait(timeout=120)
    try:
        answers.put(SqlSink.parse(url, "results").load("night", tables()))
    except JobFailedError as error:
        answers.put(str(error))


TYPES: dict[str, tuple[pa.Array, list[Any], list[Any]]] = {
    # what goes in, what SQLite gives back, what PostgreSQL gives back
    "bool": (pa.array([True, False, None]), [1, 0, None], [True, False, None]),
    "int8": (pa.array([-128, 127, None], pa.int8()), [-128, 127, None], [-128, 127, None]),
    "uint8": (pa.array([0, 255, None], pa.uint8()), [0, 255, None], [0, 255, None]),
    "uint16": (pa.array([0, 65535, None], pa.uint16()), [0, 65535, None], [0, 65535, None]),
    "uint32": (
        pa.array([0, 2**32 - 1, None], pa.uint32()),
        [0, 2**32 - 1, None],
        [0, 2**32 - 1, None],
    ),
    "int64": (
        pa.array([-(2**63), 2**63 - 1, None]),
        [-(2**63), 2**63 - 1, None],
        [-(2**63), 2**63 - 1, None],
    ),
    "uint64": (
        pa.array([2**64 - 1, 1, None], pa.uint64()),
        ["18446744073709551615", "1", None],
        [Decimal(2**64 - 1), Decimal(1), None],
    ),
    "float16": (pa.array([0.5, 2.0, None], pa.float16()), [0.5, 2.0, None], [0.5, 2.0, None]),
    "float64": (
        pa.array([0.1, float("-inf"), None]),
        [0.1, float("-inf"), None],
        [0.1, float("-inf"), None],
    ),
    "text": (
        pa.array(["", 'say "a,b"\n\\.\n', "Käfer 猫 🐈"]),
        ["", 'say "a,b"\n\\.\n', "Käfer 猫 🐈"],
        ["", 'say "a,b"\n\\.\n', "Käfer 猫 🐈"],
    ),
    "large text": (
        pa.array(["\\N", "NULL", None], pa.large_string()),
        ["\\N", "NULL", None],
        ["\\N", "NULL", None],
    ),
    "NUL": (
        pa.array(["a\0b", "\0", None]),
        ["a\ufffdb", "\ufffd", None],
        ["a\ufffdb", "\ufffd", None],
    ),
    "no UTF-8": (
        pa.array([b"gr\xfcn", b"ok", None]).view(pa.string()),
        ["gr\ufffdn", "ok", None],
        ["gr\ufffdn", "ok", None],
    ),
    "dictionary": (
        pa.array(["a", "b", None]).dictionary_encode(),
        ["a", "b", None],
        ["a", "b", None],
    ),
    "binary": (
        pa.array([b"\0\xff\\", b"", None]),
        [b"\0\xff\\", b"", None],
        [b"\0\xff\\", b"", None],
    ),
    "decimal": (
        pa.array(
            [Decimal("12345678901234567890.10"), Decimal("-0.01"), None], pa.decimal128(38, 2)
        ),
        ["12345678901234567890.10", "-0.01", None],
        [Decimal("12345678901234567890.10"), Decimal("-0.01"), None],
    ),
    "date": (
        pa.array([dt.date(2024, 2, 29), dt.date(1, 1, 1), None]),
        ["2024-02-29", "0001-01-01", None],
        [dt.date(2024, 2, 29), dt.date(1, 1, 1), None],
    ),
    "time": (
        pa.array([dt.time(23, 59, 59, 1), dt.time(0), None]),
        ["23:59:59.000001", "00:00:00.000000", None],
        [dt.time(23, 59, 59, 1), dt.time(0), None],
    ),
    "time stamp": (
        pa.array([1_709_210_096_123_456_789, 0, None], pa.timestamp("ns")),
        ["2024-02-29 12:34:56.123456", "1970-01-01 00:00:00.000000", None],
        [dt.datetime(2024, 2, 29, 12, 34, 56, 123456), dt.datetime(1970, 1, 1), None],
    ),
    "time stamp with zone": (
        pa.array([1_709_210_096, 0, None], pa.timestamp("s", "Asia/Tokyo")),
        ["2024-02-29 12:34:56.000000Z", "1970-01-01 00:00:00.000000Z", None],
        [
            dt.datetime(2024, 2, 29, 12, 34, 56, tzinfo=dt.UTC),
            dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
            None,
        ],
    ),
    "nothing but null": (pa.nulls(3), [None] * 3, [None] * 3),
    "struct": (
        pa.array([{"a": [1, None], "b\0": "x\0\\u0000"}, {"a": [], "b\0": ""}, None]),
        ['{"a": [1, null], "b\ufffd": "x\ufffd\\\\u0000"}', '{"a": [], "b\ufffd": ""}', None],
        [{"a": [1, None], "b\ufffd": "x\ufffd\\u0000"}, {"a": [], "b\ufffd": ""}, None],
    ),
    "list of numbers": (
        pa.array([[0.5, float("nan"), float("inf")], [], None]),
        ["[0.5, null, null]", "[]", None],
        [[0.5, None, None], [], None],
    ),
    "list of dates": (
        pa.array([[dt.date(2024, 2, 29)], None, None]),
        ['["2024-02-29"]', None, None],
        [["2024-02-29"], None, None],
    ),
    "list of bytes": (
        pa.array([[b"\0\xff"], None, None]),
        ['["AP8="]', None, None],
        [["AP8="], None, None],
    ),
}

ODD_NAMES = [
    'say "a"',
    "it's",
    "a b",
    "100%",
    "%(a)s",
    ":a",
    "a;--",
    "Käfer 猫",
    "SELECT",
    "User",
    "a.b",
    "x" * 63,
]


class SqlContract:
    """The tests. A class that inherits gives `url`, the URL of an empty database.

    Attributes:
        kept: Which of the values in `TYPES` the database gives back.
    """

    kept: int

    def test_a_job_is_put_into_a_table_that_is_created(self, url: str) -> None:
        target = SqlSink.parse(url, "results")
        target.require_ready(RESULTS)
        assert target.load("night", [results(0), results(3, count=2)]) == 5
        assert query(url, 'SELECT job, "row", uri, label, score, value, width FROM results') == [
            ("night", row, f"/photos/{row}.jpg", "cat", 0.5, None, 640) for row in range(5)
        ]

    def test_a_second_load_changes_nothing(self, url: str) -> None:
        target = SqlSink.parse(url, "results")
        every_row = 'SELECT * FROM results ORDER BY job, "row"'
        target.load("night", [results(count=4)])
        target.load("day", [results(count=2)])
        before = query(url, every_row)
        assert target.load("night", [results(count=4)]) == 4
        assert len(before) == 6
        assert query(url, every_row) == before

    def test_a_shorter_load_leaves_no_rows_of_the_longer_one(self, url: str) -> None:
        target = SqlSink.parse(url, "results")
        target.load("night", [results(count=4)])
        target.load("night", [results(count=1)])
        assert query(url, "SELECT count(*) FROM results") == [(1,)]

    def test_without_any_table_of_rows_nothing_is_done(self, url: str) -> None:
        assert SqlSink.parse(url, "results").load("night", []) == 0
        assert sa.inspect(connect(url)).get_table_names() == []

    def test_empty_tables_of_rows_are_no_rows(self, url: str) -> None:
        empty = results(count=0)
        assert SqlSink.parse(url, "results").load("night", [empty, results(), empty]) == 3

    @pytest.mark.parametrize("case", TYPES)
    def test_values_of_every_type(self, url: str, case: str) -> None:
        given, *expected = TYPES[case]
        table = results(mine=given)
        target = SqlSink.parse(url, "results")
        target.require_ready(table.schema)
        target.load("night", [table])
        found = query(url, 'SELECT mine FROM results ORDER BY "row"')
        assert [bytes(v) if isinstance(v, memoryview) else v for (v,) in found] == expected[
            self.kept
        ]
        target.require_ready(table.schema)  # its own table fits

    def test_a_type_without_counterpart_is_refused(self, url: str) -> None:
        schema = RESULTS.append(pa.field("took", pa.duration("s")))
        with pytest.raises(
            InputError, match=r"Column 'took' is of type duration\[s\], which no SQL"
        ):
            SqlSink.parse(url, "results").require_ready(schema)

    def test_names_of_columns_survive_letter_by_letter(self, url: str) -> None:
        table = results(**{name: pa.array([name, "", None]) for name in ODD_NAMES})
        target = SqlSink.parse(url, 'my "odd" %table')
        target.require_ready(table.schema)
        assert target.load("night", [table]) == 3
        target.require_ready(table.schema)
        assert target.load("night", [table]) == 3
        columns = [column["name"] for column in sa.inspect(connect(url)).get_columns(target.name)]
        assert columns == ["job", *table.column_names]
        found = sa.table(target.name, *map(sa.column, ["row", *ODD_NAMES]))
        with connect(url).connect() as connection:
            rows = connection.execute(sa.select(found).where(found.c.row == 0)).one()
        assert list(rows)[1:] == ODD_NAMES

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("job", "the column 'job' tells jobs apart; rename the input's 'job'"),
            ("", "cannot be named ''"),
            ("a\0b", r"cannot be named 'a\\x00b'"),
        ],
    )
    def test_names_that_cannot_be_are_refused(self, url: str, name: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            SqlSink.parse(url, "results").require_ready(RESULTS.append(pa.field(name, pa.string())))

    def test_checking_creates_no_table(self, url: str) -> None:
        SqlSink.parse(url, "results").require_ready(RESULTS)
        assert sa.inspect(connect(url)).get_table_names() == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                "ALTER TABLE results DROP COLUMN label",
                "no column 'label' in table results of .* as TEXT",
            ),
            (
                "ALTER TABLE results DROP COLUMN width; ALTER TABLE results ADD COLUMN width TEXT",
                "Column 'width' in table results of .* is TEXT and must be INTEGER",
            ),
            (
                "ALTER TABLE results ADD COLUMN reviewer INTEGER NOT NULL DEFAULT 0",
                None,
            ),
            ("ALTER TABLE results ADD COLUMN note TEXT", None),
            (
                "DROP TABLE results; CREATE TABLE results AS SELECT 'a' AS job, 1 AS \"row\"",
                "Column '(job|row)' in table .* must be|no column 'uri' in table",
            ),
            (
                "DROP TABLE results; CREATE VIEW results AS SELECT 'a' AS job",
                "Column 'job' in table .* must be|no column 'row' in table",
            ),
        ],
    )
    def test_a_table_that_is_there_must_fit(
        self, url: str, change: str, message: str | None
    ) -> None:
        target = SqlSink.parse(url, "results")
        target.load("night", [results()])
        execute(url, *change.split("; "))
        if message is None:
            target.require_ready(RESULTS)
            assert target.load("day", [results()]) == 3
            return
        with pytest.raises(InputError, match=message):
            target.require_ready(RESULTS)
        with pytest.raises(InputError, match=message):
            target.load("day", [results()])

    def test_a_table_without_the_key_or_with_demands_is_refused(self, url: str) -> None:
        schema = pa.schema([RESULTS.field("row"), RESULTS.field("uri")])
        columns = 'job TEXT, "row" BIGINT, uri TEXT'
        execute(
            url,
            f"CREATE TABLE loose ({columns})",
            f'CREATE TABLE strict ({columns}, who TEXT NOT NULL, PRIMARY KEY (job, "row"))',
        )
        with pytest.raises(InputError, match=r"primary key must be \(job, row\) in table loose of"):
            SqlSink.parse(url, "loose").require_ready(schema)
        with pytest.raises(InputError, match=r"Column 'who' in table strict of .* wants a value"):
            SqlSink.parse(url, "strict").require_ready(schema)

    def test_a_column_that_is_null_throughout_fits_any_type(self, url: str) -> None:
        target = SqlSink.parse(url, "results")
        target.load("night", [results(age=pa.array([1, 2, 3]))])
        target.load("day", [results(age=pa.nulls(3))])
        assert query(url, "SELECT sum(age), count(*) FROM results") == [(6, 6)]

    def test_when_the_rows_stop_coming_the_table_is_as_before(self, url: str) -> None:
        def tables() -> Iterator[pa.Table]:
            yield results(count=20_000)
            raise OSError("part-00001.parquet is gone")

        target = SqlSink.parse(url, "results")
        target.load("night", [results(count=4)])
        with pytest.raises(OSError, match=r"part-00001\.parquet is gone"):
            target.load("night", tables())
        assert query(url, "SELECT count(*) FROM results") == [(4,)]
        assert target.load("night", [results(count=5)]) == 5

    def test_rows_that_are_doubled_are_refused_whole(self, url: str) -> None:
        target = SqlSink.parse(url, "results")
        with pytest.raises(
            JobFailedError,
            match=r"Job night was not put into table results of .* \(.*(UNIQUE|unique)",
        ):
            target.load("night", [results(), results()])
        assert query(url, "SELECT count(*) FROM results") == [(0,)]

    def test_tables_are_held_one_at_a_time(self, url: str) -> None:
        held: list[int] = []

        def tables() -> Iterator[pa.Table]:
            for number in range(6):
                held.append(pa.total_allocated_bytes())
                yield results(first=20_000 * number, count=20_000)

        SqlSink.parse(url, "results").load("night", tables())
        size = results(count=20_000).nbytes
        assert max(held) - held[0] < 4 * size

    def test_loads_at_the_same_time_from_several_processes(self, url: str) -> None:
        """The table is created, and the same job loaded, by three processes at once."""
        context = multiprocessing.get_context("spawn")
        barrier, answers = context.Barrier(3), context.Queue()
        processes = [
            context.Process(target=load_when_all_are_there, args=(url, barrier, answers))
            for _ in range(3)
        ]
        for process in processes:
            process.start()
        assert [answers.get(timeout=120) for _ in processes] == [2000] * 3
        for process in processes:
            process.join()
        assert query(url, 'SELECT count(*), count(DISTINCT "row") FROM results') == [(2000, 2000)]

    def test_two_loads_of_one_job_wait_for_each_other(self, url: str) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> Iterator[pa.Table]:
            yield results(count=2)
            begun.set()
            assert go_on.wait(60)
            yield results(first=2, count=2)

        target = SqlSink.parse(url, "results")
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(target.load, "night", slow())
            assert begun.wait(60)
            second = pool.submit(target.load, "night", [results()])
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            go_on.set()
            assert (first.result(60), second.result(60)) == (4, 3)
        assert query(url, 'SELECT count(*), count(DISTINCT "row") FROM results') == [(3, 3)]
