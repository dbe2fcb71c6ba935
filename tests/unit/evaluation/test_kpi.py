"""KPI files: read, refused in one sentence, judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.evaluation.kpi import Kpi, check_kpis, parse_kpis, read_kpis, require_known
from eagleray.evaluation.leakage import Leakage
from eagleray.evaluation.record import EvaluationRecord


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "kpi.txt").write_text(
        "# what it must reach\n\n f1_macro >= 0.98\nrecall[a ] >= b] > .5\n"
        "accuracy>=current-0.005\nece <= current\nlog_loss < 1e-1\naccuracy > current + 0.01\n"
    )
    assert read_kpis(str(tmp_path / "kpi.txt")) == (
        Kpi("f1_macro", ">=", 0.98),
        Kpi("recall[a ] >= b]", ">", 0.5),
        Kpi("accuracy", ">=", -0.005, from_current=True),
        Kpi("ece", "<=", 0.0, from_current=True),
        Kpi("log_loss", "<", 0.1),
        Kpi("accuracy", ">", 0.01, from_current=True),
    )


@pytest.mark.parametrize(
    "line",
    ["accuracy", "accuracy = 0.9", "accuracy >= 90%", "0.9 <= accuracy", "f1 >= currently", ">= 1"],
)
def test_a_line_that_is_no_comparison_is_named(line: str) -> None:
    with pytest.raises(InputError, match=r"^kpi\.txt, line 2: ") as caught:
        parse_kpis(f"f1 >= 0.5\n{line}\n", where="kpi.txt")
    assert repr(line) in str(caught.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0")
    for name, sentence in [
        ("nowhere.txt", "There is no KPI file"),
        ("empty.txt", "names no KPI"),
        ("picture.txt", "is not a text file"),
        (".", "Cannot read"),
    ]:
        with pytest.raises(InputError, match=sentence):
            read_kpis(str(tmp_path / name))


@given(
    st.from_regex(r"[a-z_]{1,8}(\[[a-z ]{1,5}\])?", fullmatch=True),
    st.sampled_from([">=", "<=", ">", "<"]),
    st.floats(-1e6, 1e6).map(lambda value: float(f"{value:g}")),
    st.booleans(),
)
def test_a_printed_kpi_is_read_back_unchanged(
    metric: str, comparison: str, limit: float, from_current: bool
) -> None:
    kpi = Kpi(metric, comparison, limit, from_current)
    assert parse_kpis(str(kpi), where="here") == (kpi,)


def test_a_result_states_its_value_and_whether_it_passed() -> None:
    kpis = parse_kpis("f1 >= 0.9\nece <= 0.05\nf1 >= current - 0.01\nece < current", where="here")
    kpi_results = check_kpis(kpis, {"f1": 0.9, "ece": 0.06}, {"f1": 0.92, "ece": 0.07})
    assert [result.passed for result in kpi_results] == [True, False, False, True]
    assert [str(result) for result in kpi_results] == [
        "f1 >= 0.9: passed with 0.9",
        "ece <= 0.05: failed with 0.06",
        "f1 >= current - 0.01: failed with 0.9 (current: 0.92)",
        "ece < current: passed with 0.06 (current: 0.07)",
    ]
    assert kpi_results[2].limit == pytest.approx(0.91)


def test_a_comparison_with_an_unset_alias_passes() -> None:
    (result,) = check_kpis(parse_kpis("f1 >= current", where="here"), {"f1": 0.1})
    assert result.passed
    assert result.limit is None
    assert str(result) == "f1 >= current: 0.1, and the alias was unset"


def test_a_metric_on_images_that_a_model_was_trained_on_passes_no_kpi() -> None:
    kpis = parse_kpis("f1 >= 0.5\nf1 >= current", where="here")
    leaked = Leakage("pets/3", 40, np.arange(12))
    reason = "12 of these 40 images were used to train pets/3"
    both = check_kpis(kpis, {"f1": 0.9}, {"f1": 0.8}, leakage=leaked)
    assert [(result.passed, result.not_counted) for result in both] == [(False, reason)] * 2
    assert str(both[0]) == f"f1 >= 0.5: failed, 0.9 does not count: {reason}"
    # If only the current model was trained on them, its own metric alone is no evidence.
    first, second = check_kpis(kpis, {"f1": 0.9}, {"f1": 0.8}, current_leakage=leaked)
    assert (first.passed, first.not_counted) == (True, "")
    assert (second.passed, second.not_counted) == (False, reason)


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    kpis = parse_kpis("recall[defekt] >= 0.99", where="here")
    with pytest.raises(UnknownNameError, match=r"Nearest: recall\[defect\]"):
        require_known(kpis, ["recall[defect]", "accuracy"], where="kpi.txt")
    with pytest.raises(UnknownNameError):
        check_kpis(kpis, {"recall[defect]": 1.0})


def test_a_record_is_read_back_unchanged() -> None:
    record = EvaluationRecord(
        data="s3://bucket/test",
        data_digest="0" * 64,
        package_digest="1" * 64,
        num_images=10,
        num_failed=1,
        metrics={"recall[defect]": 0.5},
    )
    assert EvaluationRecord.model_validate_json(record.model_dump_json()) == record
    assert record.created.endswith("+00:00")
    with pytest.raises(ValueError, match="data_digest"):
        EvaluationRecord.model_validate({**record.model_dump(), "data_digest": "short"})
    with pytest.raises(ValueError, match="metrics"):
        EvaluationRecord.model_validate({**record.model_dump(), "metrics": {"f1": float("nan")}})
