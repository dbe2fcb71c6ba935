"""Tables as users bring them, faults included."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import InputError, UnknownNameError, UserError
from eagleray.io.storage import put_atomic
from eagleray.io.tables import (
    URI_COLUMNS,
    beside,
    digest_table,
    find_usual,
    open_table,
    require_column,
)


def written(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "images.csv"
    path.write_bytes(content)
    return str(path)


def read_whole(location: str) -> pa.Table:
    table = open_table(location)
    return pa.concat_tables(table.read(table.schema.names))


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"path,label\na.png,007\nb.png,1e3\n",
            {"path": ["a.png", "b.png"], "label": ["007", "1e3"]},
        ),
        (b"a\n2020-01-01\n", {"a": ["2020-01-01"]}),
        (b"a\ntrue\nNaN\nnull\n", {"a": ["true", "NaN", "null"]}),
        (b"a,b\n,x\n", {"a": [""], "b": ["x"]}),
        (
            b'a,b\n"line 1\nline 2","say ""hi"", twice"\n',
            {"a": ["line 1\nline 2"], "b": ['say "hi", twice']},
        ),
        (b"a,b\r\n1,2\r\n", {"a": ["1"], "b": ["2"]}),
        (b"\xef\xbb\xbfa,b\n1,2\n", {"a": ["1"], "b": ["2"]}),
        (b"a,b\n1,2", {"a": ["1"], "b": ["2"]}),
        ("größe,名\nschön,猫 🐈\n".encode(), {"größe": ["schön"], "名": ["猫 🐈"]}),
    ],
)
def test_every_column_stays_the_text_that_was_written(
    tmp_path: Path, content: bytes, expected: dict[str, list[str]]
) -> None:
    assert read_whole(written(tmp_path, content)).to_pydict() == expected


def test_a_table_can_be_behind_a_uri() -> None:
    put_atomic("memory:///tables/images.csv", b"path\na.png\n")
    assert read_whole("memory:///tables/images.csv").to_pydict() == {"path": ["a.png"]}


def test_a_column_that_turns_into_text_late_stays_text(tmp_path: Path) -> None:
    location = written(tmp_path, b"a,b\n" + b"1,2\n" * 300_000 + b"x,y\n")
    table = read_whole(location)
    assert table.num_rows == 300_001
    assert table["a"][-1].as_py() == "x"


def test_many_quoted_newlines_are_cells_and_not_rows(tmp_path: Path) -> None:
    rows = b"".join(b'"line\n%d",x\n' % index for index in range(100_000))
    table = read_whole(written(tmp_path, b"a,b\n" + rows))
    assert table.num_rows == 100_000
    assert table["a"][99_999].as_py() == "line\n99999"


def test_a_cell_larger_than_a_block_is_read(tmp_path: Path) -> None:
    cell = b'"' + b"line\n" * 300_000 + b'"'
    assert read_whole(written(tmp_path, b"a,b\n" + cell + b",x\n")).num_rows == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; a table has a line of column names and a line for each image."),
        (b"\n\n", "is empty; a table has"),
        (b"path,label\n", "has a header and no rows."),
        (b"path", "has a header and no rows."),
        (
            b"path,label\na.png\n",
            "Expected 2 columns, got 1: a.png); every line must have as many values as the "
            "header has names.",
        ),
        (
            b"path,label\na.png,x,y\n",
            "Expected 2 columns, got 3: a.png,x,y); every line must have as many values as the "
            "header has names.",
        ),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "holds zero bytes, as no text does"),
        (b"path,label,path\na.png,x,b.png\n", "has more than one column named 'path'"),
        ("path,label\na.png,x\n".encode("utf-16"), "is in UTF-16; save it in UTF-8"),
        ("path,label\na.png,x\n".encode("utf-16-be"), "is in UTF-16; save it in UTF-8"),
        ("path\na.png\n".encode("utf-32"), "is in UTF-32; save it in UTF-8"),
        (b"PK\x03\x04 and so on", "is a zip archive (as Excel workbooks are), and no text"),
        (b"\x1f\x8b and so on", "is compressed with gzip, and no text; name it after what it is"),
        (b"PAR1 and so on", "is a Parquet file, and no text; name it after what it is"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, content: bytes, expected: str) -> None:
    location = written(tmp_path, content)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        read_whole(location)
    assert str(caught.value).startswith(f"{location} ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"gr\xf6sse,label\na.png,x\n", "Line 1 of {path} is not UTF-8 but perhaps Windows-1252"),
        (b"path,name\na.png,caf\xe9\n", "Line 2 of {path} is not UTF-8 but perhaps Windows-1252"),
        (b"path\n" + b"a.png\n" * 100_000 + b"caf\xe9.png\n", "Line 100002 of {path} is not UTF-8"),
    ],
)
def test_an_encoding_of_one_byte_a_letter_is_named_with_its_line(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    location = written(tmp_path, content)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        read_whole(location)
    assert str(caught.value).startswith(expected.format(path=location))
    assert str(caught.value).endswith("save the file in UTF-8.")
    assert any(word in str(caught.value) for word in ("grösse", "café"))


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"path;size\na, b.png;3,5\n", "columns are separated by ';' and not by ','"),
        (b"path\tsize\na, b.png\t3,5\n", "columns are separated by a tab and not by ','"),
        (b"path|size\na, b.png|3,5\n", "columns are separated by '|' and not by ','"),
        (b"sep=;\r\npath;size\r\na, b.png;3,5\r\n", None),
        (b"\xef\xbb\xbfsep=|\npath|size\na, b.png|3,5\n", None),
    ],
)
def test_other_separators_are_found_and_reported(
    tmp_path: Path, content: bytes, note: str | None
) -> None:
    table = open_table(written(tmp_path, content))
    assert read(table.location).to_pydict() == {"path": ["a, b.png"], "size": ["3,5"]}
    assert table.notes == (() if note is None else (note,))


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (b"path\na;b.png\n", {"path": ["a;b.png"]}),  # one column, and no separator at all
        (b"a;b,c\n1;2,3\n", {"a;b": ["1;2"], "c": ["3"]}),
        (b"path\n", None),
    ],
)
def test_a_comma_is_believed_where_it_separates(
    tmp_path: Path, content: bytes, columns: dict[str, list[str]] | None
) -> None:
    table = open_table(written(tmp_path, content), may_be_empty=True)
    assert table.notes == ()
    if columns is not None:
        assert read(table.location).to_pydict() == columns


def test_tabs_separate_the_columns_of_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / "t.TSV"
    path.write_bytes(b"path\tnote\na, b.png\tx;y\n")
    assert read(str(path)).to_pydict() == {"path": ["a, b.png"], "note": ["x;y"]}


@pytest.mark.parametrize(
    "first",
    [
        *("img/red.jpg", "RED.JPG,cat", "cat;red.tiff", "s3://bucket/a,cat", "/data/1\tcat"),
        *("../a", "C:\\photos\\1", "data:image/png;base64"),
    ],
)
def test_a_first_line_that_is_a_row_is_no_header(tmp_path: Path, first: str) -> None:
    location = written(tmp_path, f"{first}\n{first}\n".encode())
    with pytest.raises(InputError, match="seems to have no header: its first line holds"):
        read_whole(location)


def test_texts_in_gzip_are_unpacked_while_they_are_read(tmp_path: Path) -> None:
    for name, lines in {
        "t.csv.gz": (b"path,n\na.png,1\n", b"b.png,2\n"),
        "t.TSV.GZ": (b"path\tn\na.png\t1\n", b"b.png\t2\n"),
        "t.jsonl.gz": (b'{"path": "a.png", "n": "1"}\n', b'{"path": "b.png", "n": "2"}\n'),
    }.items():
        path = tmp_path / name
        path.write_bytes(b"".join(map(gzip.compress, lines)))
        assert read(str(path)).to_pydict() == {"path": ["a.png", "b.png"], "n": ["1", "2"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(b"path\na.png\n" * 9999)[:-9], "ends early or is damaged; copy it again."),
        (b"path\na.png\n", "is not compressed with gzip, or is damaged; if it is not, take '.gz'"),
    ],
)
def test_damaged_gzip_is_one_sentence(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(str(path))
    assert str(caught.value).startswith(f"{path} {expected}")


def test_a_table_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_whole(str(tmp_path / "none.csv"))
    assert str(caught.value) == f"Cannot read {tmp_path}/none.csv: there is no such file."
    with pytest.raises(InputError, match="Is a directory"):
        read_whole(str(tmp_path))
    with pytest.raises(InputError, match=r"^Cannot read memory:///none\.csv: "):
        read_whole("memory:///none.csv")


# --- JSON lines and Parquet -------------------------------------------------------------------


def read(location: str, columns: Sequence[str] | None = None) -> pa.Table:
    table = open_table(location)
    return pa.concat_tables(table.read(columns or table.schema.names))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ("1 2 null", pa.int64(), [1, 2, None]),
        ("1 2.5 null", pa.float64(), [1.0, 2.5, None]),
        ("1e3 NaN", pa.float64(), [1000.0, math.nan]),
        ("true false", pa.bool_(), [True, False]),
        ('"a" null ""', pa.string(), ["a", None, ""]),
        ("null null", pa.string(), [None, None]),
        ('"a" 1 true null', pa.string(), ['"a"', "1", "true", None]),
        ("true 1", pa.string(), ["true", "1"]),
        ('[1,"é"] {"b":null} 7', pa.string(), ['[1, "é"]', '{"b": null}', "7"]),
        ("9223372036854775807 1", pa.int64(), [2**63 - 1, 1]),
        ("9223372036854775808 1", pa.string(), ["9223372036854775808", "1"]),
        ("9007199254740993 0.5", pa.string(), ["9007199254740993", "0.5"]),
        (r'"\ud800" "\u00e9"', pa.string(), ["\\ud800", "é"]),
    ],
)
def test_json_columns_have_the_type_that_all_their_values_fit(
    tmp_path: Path, values: str, kind: pa.DataType, expected: list[object]
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"x": {value}}}\n' for value in values.split()))
    table = read(str(path))
    assert table.schema == pa.schema([("x", kind)])
    assert repr(table.column("x").to_pylist()) == repr(expected)


def test_json_lines_may_lack_names_and_end_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "t.NDJSON"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  {"b": "x", "a": null}\n{"c": true}')
    assert read(str(path)).to_pylist() == [
        {"a": 1, "b": None, "c": None},
        {"a": None, "b": "x", "c": None},
        {"a": None, "b": None, "c": True},
    ]
    assert read(str(path), ["c", "a"]).column_names == ["c", "a"]
    assert open_table(str(path)).num_rows == 3


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            b'{"a": }',
            "Line 20001 of {path} is not JSON (Expecting value: line 1 column 7",
        ),
        (b"[1]", "Line 20001 of {path} is not JSON (it is not an object in braces)."),
        (b'{"a": "\xff"}', "Line 20001 of {path} is not UTF-8 but perhaps Windows-1252"),
        (b"[" * 100_000, "Line 20001 of {path} is not JSON ("),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 20_000 + line + b"\n")
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        open_table(str(path))
    assert str(caught.value).startswith(fault.format(path=path))


def test_tables_are_read_a_few_thousand_rows_at_a_time(tmp_path: Path) -> None:
    columns = {"a": [str(number) for number in range(20_000)]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a\n" + "\n".join(columns["a"]) + "\n")
    (tmp_path / "t.jsonl").write_text("".join(f'{{"a": "{text}"}}\n' for text in columns["a"]))
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        parts = list(open_table(str(tmp_path / name)).read(["a"]))
        assert max(part.num_rows for part in parts) <= 8192
        assert pa.concat_tables(parts).to_pydict() == columns


def test_parquet_columns_keep_their_types_and_order(tmp_path: Path) -> None:
    table = pa.table(
        {"a.b": pa.array([1], pa.int8()), "c": [[1.5]], "d": [{"e": "x"}], "f": [b"bytes"]}
    )
    path = str(tmp_path / "t.parquet")
    pq.write_table(table, path)
    assert read(path) == table
    assert read(path, ["d", "a.b"]) == table.select(["d", "a.b"])


def test_columns_that_are_not_requested_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2], "image": [b"x" * 99, b"y" * 99]}), path, compression=None)
    content = path.read_bytes()
    length = content.index(b"x" * 99) - 4
    path.write_bytes(content[:length] + b"\xff" * 4 + content[length + 4 :])
    assert read(str(path), ["a"]).to_pydict() == {"a": [1, 2]}
    with pytest.raises(InputError, match=r"^(Cannot read )?\S*t\.parquet(: | is damaged)[^\n]+$"):
        read(str(path), ["image"])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.parquet", b"", "{path} is not a whole Parquet file ("),
        ("t.parquet", b"PAR1" * 10, "{path} is not a whole Parquet file ("),
        (
            "t.parquet",
            b"path,label\na.png,x\n",
            "{path} is a text, and no Parquet file; rename it.",
        ),
        (
            "t.parquet",
            b"PK\x03\x04" * 10,
            "{path} is a zip archive, and no Parquet file; rename it.",
        ),
        ("t.jsonl", b"", "{path} has no rows."),
        ("t.jsonl", b"\xff\xfe{\0}\0", "{path} is in UTF-16; save it in UTF-8"),
        ("t.jsonl", b"PAR1", "{path} is a Parquet file, and no text"),
        ("t.jsonl", None, "Cannot read {path}: there is no such file."),
        ("t.pq", None, "Cannot read {path}: there is no such file."),
    ],
)
def test_what_is_no_such_table_is_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        open_table(str(path))
    assert str(caught.value).startswith(sentence.format(path=path))


def test_an_empty_table_is_refused_unless_it_may_be(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.int8())}), path)
    with pytest.raises(InputError, match="has a header and no rows"):
        open_table(path)
    assert open_table(path, may_be_empty=True).schema == pa.schema([("a", pa.int8())])


# --- columns ----------------------------------------------------------------------------------

TABLE = pa.table({"image": ["b.png"], "label": ["x"], "path": ["a.png"]})


@pytest.mark.parametrize(
    ("wanted", "usual", "expected"),
    [("label", URI_COLUMNS, "label"), (None, URI_COLUMNS, "path"), (None, ("label",), "label")],
)
def test_the_wanted_column_wins_over_the_usual_ones(
    wanted: str | None, usual: tuple[str, ...], expected: str
) -> None:
    assert require_column(TABLE, wanted, usual, "t.csv", flag="--column") == expected


def test_a_usual_name_may_have_spaces_around_it_and_capitals() -> None:
    names = ["label", " URI ", "Path", "uri"]
    assert find_usual(names, URI_COLUMNS) == ["uri", " URI ", "Path"]
    table = pa.table({" URI ": ["a"], "Label": ["x"]})
    assert require_column(table, None, URI_COLUMNS, "t.csv", flag="--column") == " URI "


@pytest.mark.parametrize(
    ("wanted", "usual", "error", "expected"),
    [
        (
            "lable",
            (),
            UnknownNameError,
            "No column of t.csv is named 'lable'. Nearest: label. It has: image, label, path.",
        ),
        ("Path", (), UnknownNameError, "No column of t.csv is named 'Path'. Nearest: path"),
        (
            None,
            ("uri", "url"),
            InputError,
            "t.csv has no column named uri or url; it has image, label, path. Name the right one "
            "with --column.",
        ),
    ],
)
def test_a_missing_column_lists_those_that_are_there(
    wanted: str | None, usual: tuple[str, ...], error: type[UserError], expected: str
) -> None:
    with pytest.raises(error) as caught:
        require_column(TABLE, wanted, usual, "t.csv", flag="--column")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("table", "location", "expected"),
    [
        ("/data/t.csv", "a.png", "/data/a.png"),
        ("/data/t.csv", "cats/a b%20.png", "/data/cats/a b%20.png"),
        ("/data/t.csv", "../a.png", "/data/../a.png"),
        ("/data/t.csv", "/other/a.png", "/other/a.png"),
        ("/data/t.csv", "s3://bucket/a.png", "s3://bucket/a.png"),
        ("/t.csv", "a.png", "/a.png"),
        ("file:///data/t.csv", "a.png", "/data/a.png"),
        ("s3://bucket/data/t.csv", "a.png", "s3://bucket/data/a.png"),
        ("s3://bucket/t.csv", "cats/a.png", "s3://bucket/cats/a.png"),
        pytest.param(
            "/data/t.csv",
            "file:///other/a.png",
            "file:///other/a.png",
        ),
    ],
)
def test_locations_in_a_table_are_relative_to_it(table: str, location: str, expected: str) -> None:
    assert beside(table)(location) == expected


def test_a_table_named_without_folder_lies_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert beside("t.csv")("a.png") == f"{tmp_path}/a.png"


# --- digest -----------------------------------------------------------------------------------

CELLS = st.text(alphabet="ab,'\"\\\n\0|() é", max_size=4)
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=4)
)


def digest_rows(rows: list[tuple[str, ...]]) -> str:
    return digest_table(list(zip(*rows, strict=True)))


@given(TABLES, TABLES)
def test_different_tables_have_different_digests(
    one: list[tuple[str, ...]], other: list[tuple[str, ...]]
) -> None:
    assert (digest_rows(one) == digest_rows(other)) == (one == other)


@given(
    st.lists(CELLS, min_size=2, max_size=2), st.sampled_from([",", "\n", "'", "', '", "|", "\0"])
)
def test_moving_a_separator_between_cells_changes_the_digest(
    cells: list[str], separator: str
) -> None:
    left, right = cells
    tables: list[list[tuple[str, ...]]] = [
        [(left + separator, right)],
        [(left, separator + right)],
        [(left + separator + right,)],
        [(left,), (separator + right,)],
        [(left, separator, right)],
    ]
    assert len({digest_rows(rows) for rows in tables}) == len(tables)


def test_the_digest_knows_types_and_the_order_of_rows_and_columns() -> None:
    tables: list[list[list[object]]] = [
        [["1", "2"], ["a", "b"]],
        [["2", "1"], ["b", "a"]],
        [["a", "b"], ["1", "2"]],
        [[1, 2], ["a", "b"]],
        [["1", "2"], ["a", None]],
        [["1", "2"], ["a", "None"]],
    ]
    assert len({digest_table(columns) for columns in tables}) == len(tables)


def test_the_digest_is_the_same_wherever_it_is_computed() -> None:
    expected = "a3fb02d72ca3a66e1f4e76b056b880382e6d4838ed2eb97e886161b1b794fbe0"
    assert digest_table([("a", "b"), ("é", "\n")]) == expected


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        digest_table([["a"], ["b", "c"]])
