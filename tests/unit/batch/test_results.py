"""Result rows and their files: every column documented, every format reads back what went in."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.batch.results import output_names, read_columns, result_schema
from eagleray.core.errors import Reason
from eagleray.core.types import OutputFormat
from eagleray.io.arrow_files import column_names, decode_table, encode_table
from eagleray.registry.references import LoadedModel
from eagleray.tasks import Multiclass, Multilabel
from eagleray.tasks.outcome import Outcome
from tests.support.batch import (
    MULTILABEL,
    REGRESSION,
    classified,
    failure,
    listing,
    loaded_model,
    measured,
    multilabelled,
    result_rows,
)
from tests.support.models import small_package
from tests.support.result_files import FORMATS, ODD_COLUMNS, every_format

OURS = [
    *("row", "uri", "status", "reason", "message", "label", "score", "labels", "value", "top_k"),
    *("width", "height", "milliseconds", "model", "model_version", "model_digest"),
    "contract_digest",
]


# --- rows -------------------------------------------------------------------------------------


def test_a_row_tells_all_about_its_image() -> None:
    model = loaded_model()
    table = result_rows([classified("one"), failure()], first_row=7)
    assert table.column_names == OURS
    good, bad = table.to_pylist()
    about = {
        "model": "digits",
        "model_version": "3",
        "model_digest": model.package.digest,
        "contract_digest": model.package.contract.digest,
        "milliseconds": 1.5,
        "value": None,
    }
    assert good == about | {
        "row": 7,
        "uri": "/images/7.png",
        "status": "ok",
        "reason": None,
        "message": None,
        "label": "one",
        "score": 0.75,
        "labels": ["one"],
        "top_k": [{"label": "one", "score": 0.75}, {"label": "zero", "score": 0.125}],
        "width": 8,
        "height": 6,
    }
    assert bad == about | {
        "row": 8,
        "uri": "/images/8.png",
        "status": "failed",
        "reason": "truncated",
        "message": "the file ends early",
        "label": None,
        "score": None,
        "labels": None,
        "top_k": None,
        "width": None,
        "height": None,
    }


def test_a_multilabel_row_has_a_column_for_each_label() -> None:
    model = loaded_model(MULTILABEL)
    table = result_rows(
        [multilabelled(0.75, 0.25, 0.5), multilabelled(0.25, 0.25, 0), failure()], model=model
    )
    assert "top_k" not in table.column_names
    several, none, bad = table.to_pylist()
    assert several["labels"] == ["cat", "row"]
    assert (several["label"], several["score"]) == ("cat", 0.75)
    assert [several[f"score_{name}"] for name in MULTILABEL.labels] == [0.75, 0.25, 0.5]
    assert (none["label"], none["labels"], none["score"]) == (None, [], 0.25)
    assert [bad[f"score_{name}"] for name in MULTILABEL.labels] == [None] * 3


def test_a_label_with_a_name_of_ours_takes_no_column_of_ours() -> None:
    task = Multilabel(labels=("row", "uri", "score"), thresholds=(0.5,) * 3)
    model = LoadedModel("odd", small_package(task=task))
    names = result_schema(model, listing(1).schema).names
    assert len(names) == len(set(names))
    assert {"row", "score_row", "score_uri", "score_score"} <= set(names)


def test_a_multilabel_model_of_thousands_of_labels_lists_the_best() -> None:
    labels = tuple(f"l{number}" for number in range(1001))
    task = Multilabel(labels=labels, thresholds=(0.5,) * len(labels))
    names = result_schema(LoadedModel("large", small_package(task=task)), listing(1).schema).names
    assert names == OURS


def test_a_regression_row_has_a_value_and_no_label() -> None:
    good, bad = result_rows([measured(2.5), failure()], model=loaded_model(REGRESSION)).to_pylist()
    assert (good["value"], good["label"], good["score"]) == (2.5, None, None)
    assert good["top_k"] == []
    assert bad["value"] is None


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_code(reason: Reason) -> None:
    (row,) = result_rows([failure("so it is", reason)]).to_pylist()
    assert (row["status"], row["reason"], row["message"]) == ("failed", reason.value, "so it is")


# --- the user's columns -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (["who", "when"], ["who", "when"]),
        (OURS, [f"input_{name}" for name in OURS]),
        (["score_cat", "score_"], ["input_score_cat", "input_score_"]),
        (["label", "input_label"], ["input_label_2", "input_label"]),
        (["input_label", "label"], ["input_label", "input_label_2"]),
        (
            ["label", "input_label", "input_label_2"],
            ["input_label_3", "input_label", "input_label_2"],
        ),
        (["user:row", "Row", "", "a.b"], ["user:row", "Row", "", "a.b"]),
    ],
)
def test_ours_keep_their_names_and_the_users_get_others(
    columns: list[str], names: list[str]
) -> None:
    assert output_names(columns) == names


@given(
    st.lists(
        st.builds(
            lambda times, name: "input_" * times + name,
            st.integers(0, 3),
            st.sampled_from(["row", "label", "score_x", "mine"]),
        ),
        unique=True,
    )
)
def test_no_two_columns_of_a_result_have_one_name(columns: list[str]) -> None:
    names = output_names(columns)
    assert len(set(names) | set(OURS)) == len(names) + len(OURS)


@every_format
def test_the_users_columns_come_along_in_their_order(output_format: OutputFormat) -> None:
    user = pa.table({"label": ["mine"], "who": ["me"], "row": [5], "score_x": [1.5], "": [True]})
    table = result_rows([classified()], user=user)
    assert table.column_names[2:7] == ["input_label", "who", "input_row", "input_score_x", ""]
    content = encode_table(table, output_format)
    found = read_columns(content, output_format, user_schema=user.schema)
    assert found.schema == table.schema
    assert found.to_pylist() == table.to_pylist()


@every_format
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_a_column_of_any_type_reads_back_as_it_was(name: str, output_format: OutputFormat) -> None:
    table = pa.table({"row": [0, 1], name: ODD_COLUMNS[name]})
    content = encode_table(table, output_format)
    assert column_names(content, output_format) == ["row", name]
    assert decode_table(content, output_format, table.schema).equals(table)
    numbers = decode_table(content, output_format, table.schema.remove(1))
    assert numbers.to_pydict() == {"row": [0, 1]}


@pytest.mark.parametrize(
    ("name", "in_csv", "in_json"),
    [
        ("binary", "/wA=", "/wA="),
        ("date", "2026-01-31", "2026-01-31"),
        ("moment with zone", "2001-09-09 03:46:40.000000+0200", "2001-09-09 03:46:40.000000+0200"),
        ("time", "01:02:03.000004", "01:02:03.000004"),
        ("decimal", "1.50", "1.50"),
        ("duration", "1", 1),
        ("uint64", "18446744073709551615", 2**64 - 1),
        ("list", '["a", null, ""]', ["a", None, ""]),
        ("map", '[["a", 1]]', [["a", 1]]),
    ],
)
def test_text_formats_spell_what_they_have_no_form_for(
    name: str, in_csv: str, in_json: object
) -> None:
    table = pa.table({name: ODD_COLUMNS[name]})
    lines = encode_table(table, "csv").decode()
    assert next(csv.DictReader(io.StringIO(lines, newline="")))[name] == in_csv
    assert json.loads(encode_table(table, "jsonl").splitlines()[0]) == {name: in_json}


def test_text_that_is_no_unicode_does_not_end_a_job() -> None:
    offsets = pa.array([0, 3, 4], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xffbc")])
    table = pa.table({"name": broken})
    assert encode_table(table, "csv").decode() == '"name"\n"a\N{REPLACEMENT CHARACTER}b"\n"c"\n'
    first = encode_table(table, "jsonl").splitlines()[0]
    assert json.loads(first) == {"name": "a\N{REPLACEMENT CHARACTER}b"}


def strict_json(line: bytes) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_json_lines_are_json_also_without_a_number() -> None:
    user = pa.table({"x": [float("nan"), float("inf")], "xs": [[1.0, float("nan")], []]})
    table = result_rows([classified(score=float("nan")), classified()], user=user)
    first, second = map(strict_json, encode_table(table, "jsonl").splitlines())
    assert (first["x"], first["xs"], first["score"]) == (None, [1.0, None], None)
    assert first["top_k"][0]["score"] is None
    assert (second["x"], second["score"]) == (None, 0.75)
    rows = list(csv.DictReader(io.StringIO(encode_table(table, "csv").decode(), newline="")))
    assert [row["x"] for row in rows] == ["nan", "inf"]


# --- files ------------------------------------------------------------------------------------


def odd_results() -> pa.Table:
    outcomes: list[Outcome] = [
        classified(),
        failure('the data end, says "x",\nearly' + "!" * 3_000_000),
    ]
    return result_rows(outcomes * 3, uris=['a,"b"\n.png', "ü ", "", "s3://b/%20", "NA", "007"])


@every_format
def test_a_file_reads_back_with_the_types_of_the_table(output_format: OutputFormat) -> None:
    table = odd_results()
    found = read_columns(encode_table(table, output_format), output_format)
    assert found.equals(table)


@every_format
def test_some_columns_are_read_in_the_requested_order(output_format: OutputFormat) -> None:
    table = odd_results()
    found = read_columns(encode_table(table, output_format), output_format, ["status", "row"])
    assert found.equals(table.select(["status", "row"]))


@every_format
def test_columns_that_are_null_at_first_are_read_all_the_same(output_format: OutputFormat) -> None:
    rows = 3000
    outcomes = [*[classified()] * rows, failure()]
    content = encode_table(result_rows(outcomes), output_format)
    reasons = read_columns(content, output_format, ["reason"]).column("reason").to_pylist()
    assert reasons == [*[None] * rows, "truncated"]


@every_format
def test_scores_of_labels_are_read_as_numbers(output_format: OutputFormat) -> None:
    table = result_rows([multilabelled(0.75, 0.25, 0.5), failure()], model=loaded_model(MULTILABEL))
    assert read_columns(encode_table(table, output_format), output_format).equals(table)


@every_format
@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"PAR1 and the rest", b'"row"\n1,2,3\n', b'{"row": 1'], ids=repr
)
def test_a_damaged_file_is_an_error_that_can_be_caught(
    output_format: OutputFormat, content: bytes
) -> None:
    with pytest.raises((ValueError, OSError, KeyError)):
        read_columns(content, output_format, ["row", "status"])


@every_format
def test_a_table_with_columns_of_others_is_no_result(output_format: OutputFormat) -> None:
    content = encode_table(pa.table({"row": [1], "mine": [2]}), output_format)
    with pytest.raises(ValueError, match="no column 'mine'"):
        read_columns(content, output_format)


def test_a_flipped_byte_in_a_parquet_file_is_found() -> None:
    table = result_rows([classified("one", 0.51 + number / 1000) for number in range(64)])
    content = encode_table(table, "parquet")
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata
    column = metadata.row_group(0).column(table.column_names.index("score"))
    damaged = bytearray(content)
    damaged[column.dictionary_page_offset + column.total_compressed_size - 5] ^= 1
    with pytest.raises(OSError, match="CRC"):
        read_columns(bytes(damaged), "parquet", ["score"])


def test_an_empty_table_has_its_header() -> None:
    table = odd_results().slice(0, 0)
    assert encode_table(table, "jsonl") == b""
    assert read_columns(encode_table(table, "csv"), "csv").schema == table.schema


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.none() | texts,
            st.none() | numbers,
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.binary(max_size=4),
            st.none() | st.lists(st.none() | texts, max_size=3),
            st.none() | st.fixed_dictionaries({"a": st.none() | numbers, "b": texts}),
            st.none() | st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(FORMATS),
)
def test_any_values_of_the_users_columns_survive(
    rows: list[tuple[Any, ...]], output_format: OutputFormat
) -> None:
    kinds = {
        "text": pa.string(),
        "number": pa.float64(),
        "whole": pa.int64(),
        "bytes": pa.binary(),
        "texts": pa.list_(pa.string()),
        "pair": pa.struct({"a": pa.float64(), "b": pa.string()}),
        "moment": pa.timestamp("us"),
    }
    values = zip(*rows, strict=True)
    user = pa.table(
        [pa.array(column, kind) for column, kind in zip(values, kinds.values(), strict=True)],
        names=list(kinds),
    )
    table = result_rows([classified()] * len(rows), user=user)
    content = encode_table(table, output_format)
    found = read_columns(content, output_format, user_schema=user.schema)
    assert found.equals(table)


def test_labels_that_look_like_numbers_stay_text() -> None:
    task = Multiclass(labels=("007", "2026-01-01", "null"))
    model = LoadedModel("odd", small_package(task=task))
    prediction = classified("zero").prediction
    assert prediction is not None
    outcome = Outcome(
        prediction=type(prediction)("007", 0.75, ("007",), None, prediction.probabilities)
    )
    for output_format in FORMATS:
        content = encode_table(result_rows([outcome], model=model), output_format)
        (row,) = read_columns(content, output_format, ["label", "labels"]).to_pylist()
        assert row == {"label": "007", "labels": ["007"]}
