"""The report: totals that reconcile, examples, and a page that can be looked at."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.batch.report import (
    REPORT_COLUMNS,
    ReportCollector,
    Totals,
    render_report,
)
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.timeline import seconds_of_work
from eagleray.core.errors import Reason
from eagleray.tasks import Embedding
from eagleray.tasks.embedding import VectorPrediction
from eagleray.tasks.outcome import Outcome
from eagleray.tasks.segmentation.class_maps import encode_mask
from tests.support.batch import (
    MULTILABEL,
    REGRESSION,
    classified,
    failure,
    loaded_model,
    measured,
    multilabelled,
    result_rows,
)
from tests.support.images import encode, photo

NAN = float("nan")


def collected(*tables: pa.Table) -> ReportCollector:
    collector = ReportCollector()
    for table in tables:
        collector.add(table.select([one for one in REPORT_COLUMNS if one in table.column_names]))
    return collector


def shard(started: float, finished: float, *, ok: int = 16, failed: int = 0) -> ShardSummary:
    return ShardSummary(0, ok, failed, started, finished)


def page_of(
    collector: ReportCollector,
    *,
    rows: int = 4,
    failed: int = 0,
    timeline: Sequence[ShardSummary] = (),
    plan: dict[str, object] | None = None,
) -> str:
    totals = Totals(rows, rows - failed, failed, seconds_of_work(timeline))
    return render_report(collector, totals, timeline, plan or {}, model_name="digits/3").decode()


# --- counts and examples ----------------------------------------------------------------------


def test_labels_and_reasons_are_counted_over_all_tables() -> None:
    missing = failure("there is no file", Reason.MISSING)
    collector = collected(
        result_rows([classified("zero"), failure(), classified("one")]),
        result_rows([classified("zero"), missing, failure()], first_row=3),
    )
    assert collector.labels == {"zero": 2, "one": 1}
    assert collector.reasons == {"truncated": 2, "missing": 1}
    assert sum(collector.score_counts) == 3
    (example,) = collector.reason_examples("missing")
    assert (example.uri, example.message) == ("/images/4.png", "there is no file")
    assert [one.uri for one in collector.class_examples("zero")] == [
        "/images/0.png",
        "/images/3.png",
    ]


def test_examples_are_few_however_many_there_are() -> None:
    collector = collected(result_rows([*[classified()] * 300, *[failure()] * 300]))
    assert len(collector.class_examples("zero")) == 8
    assert len(collector.reason_examples("truncated")) == 3
    assert len(collector.least_confident) == 20


def test_the_least_confident_of_many_are_kept_and_the_first_of_equals() -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(0.01, 0.99, 500)).tolist()
    tables = [
        result_rows([classified(score=score) for score in scores[start : start + 100]])
        for start in range(0, 500, 100)
    ]
    kept = [example.score for example in collected(*tables).least_confident]
    assert kept == pytest.approx(sorted(scores)[:20], abs=1e-6)
    equal = collected(
        result_rows([classified(score=0.5)] * 15),
        result_rows([classified(score=0.5)] * 15, first_row=15),
    )
    assert [one.uri for one in equal.least_confident] == [f"/images/{n}.png" for n in range(20)]


@pytest.mark.parametrize(
    ("score", "place"), [(0.0, 0), (0.049, 0), (0.051, 1), (0.5, 10), (0.999, 19), (1.0, 19)]
)
def test_a_score_is_counted_where_it_belongs(score: float, place: int) -> None:
    counts = collected(result_rows([classified(score=score)])).score_counts
    assert [index for index, count in enumerate(counts) if count] == [place]


def test_of_a_multilabel_image_every_label_counts() -> None:
    collector = collected(
        result_rows(
            [multilabelled(0.9, 0.8, 0.1), multilabelled(0.1, 0.2, 0.3), failure()],
            model=loaded_model(MULTILABEL),
        )
    )
    assert collector.labels == {"cat": 1, "dog": 1, "(none)": 1}
    assert [example.label for example in collector.least_confident] == ["(none)", "cat"]
    assert sum(collector.score_counts) == 2


def test_values_of_a_regression_are_kept() -> None:
    collector = collected(
        result_rows([measured(1.5), failure(), measured(-3)], model=loaded_model(REGRESSION))
    )
    assert collector.values == [1.5, -3.0]
    assert collector.labels == {}


def test_a_network_with_outputs_that_are_not_finite_does_not_end_the_job() -> None:
    classes = collected(result_rows([classified(score=NAN), classified("one", 0.5)]))
    assert classes.labels == {"zero": 1, "one": 1}
    assert sum(classes.score_counts) == 1
    assert [example.label for example in classes.least_confident] == ["one"]
    odd = [measured(value) for value in (NAN, math.inf, 2.0)]
    numbers = collected(result_rows(odd, model=loaded_model(REGRESSION)))
    assert numbers.values == [2.0]
    for collector in (classes, numbers, collected(result_rows([classified(score=NAN)]))):
        assert "every image is accounted for" in page_of(collector)


def test_no_more_values_are_kept_than_a_histogram_needs() -> None:
    table = result_rows([measured(1.0)] * 3000, model=loaded_model(REGRESSION))
    assert len(collected(*[table] * 4).values) == 10_000


outcomes = st.sampled_from([classified(), classified("one", 0.9), classified(score=NAN), failure()])


@given(st.lists(outcomes, min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_a_report_counts_the_same_however_the_rows_come(
    made: list[Outcome], places: list[int]
) -> None:
    whole = result_rows(made)
    edges = [0, *sorted(min(place, len(made)) for place in places), len(made)]
    pieces = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    one, other = collected(whole), collected(*pieces)
    for view in ("labels", "reasons", "score_counts", "least_confident"):
        assert getattr(one, view) == getattr(other, view)
    for label in one.labels:
        assert one.class_examples(label) == other.class_examples(label)
    assert one.labels.total() + one.reasons.total() == len(made)


def test_images_per_second_of_no_work_are_none() -> None:
    assert Totals(100, 90, 10, seconds=0.0).images_per_second == 0
    assert Totals(100, 90, 10, seconds=20.0).images_per_second == 5


# --- the page ---------------------------------------------------------------------------------


def test_the_page_reconciles_and_escapes_what_it_was_given(tmp_path: Path) -> None:
    image = tmp_path / "<b>.png"
    image.write_bytes(encode(photo(30, 20)))
    rows = result_rows(
        [
            classified("zero", 0.9),
            classified("one", 0.2),
            classified("zero", 0.6),
            failure("<i>no"),
        ],
        uris=[str(image)] * 4,
    )
    page = page_of(
        collected(rows),
        failed=1,
        timeline=[shard(0, 1), shard(1, 2)],
        plan={"model": "<script>alert(1)</script>"},
    )
    assert re.search(r"3 ok \+ 1 failed\s+= 4 inputs", page)
    assert page.count("data:image/jpeg;base64,") == 6  # three least confident, three in classes
    assert page.count("<svg") == 4
    assert "Throughput" in page
    for raw in ("<script>", "<b>.png", "<i>no"):
        assert raw not in page
    assert "&lt;b&gt;.png" in page
    assert "&lt;i&gt;no" in page


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = page_of(collected(result_rows([classified()])))
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']+", page)
    assert "@import" not in page


def test_a_job_in_which_all_failed_has_a_page() -> None:
    rows = result_rows([failure()] * 3)
    page = page_of(collected(rows), rows=3, failed=3, timeline=[shard(0, 1, ok=0, failed=3)])
    assert re.search(r"0 ok \+ 3 failed\s+= 3 inputs", page)
    assert "Failures by reason" in page
    assert "Examples of each class" not in page
    assert "Least confident" not in page


def test_images_of_multilabel_without_any_label_have_a_place(tmp_path: Path) -> None:
    rows = result_rows([multilabelled(0.1, 0.2, 0.3)], model=loaded_model(MULTILABEL))
    page = page_of(collected(rows), rows=1)
    assert page.count("(none)") >= 3
    assert "0.30" in page


def test_embeddings_are_counted_without_classes_or_scores() -> None:
    vector = VectorPrediction(embedding=np.asarray([0.6, 0.8], np.float32))
    model = loaded_model(Embedding(dimension=2))
    rows = result_rows([Outcome(vector, width=8, height=8), failure()], model=model)
    known = [name for name in REPORT_COLUMNS if name in rows.column_names]
    collector = ReportCollector()
    collector.add(rows.select(known))
    page = page_of(collector, rows=2, failed=1)
    assert "1 ok + 1 failed" in page
    assert "Confidence" not in page
    assert rows.column("embedding").to_pylist() == [pytest.approx([0.6, 0.8]), None]


def test_a_regression_shows_its_values() -> None:
    rows = result_rows([measured(1.0), measured(2.0)], model=loaded_model(REGRESSION))
    page = page_of(collected(rows), rows=2)
    assert "Predicted values" in page
    assert "Confidence" not in page


def test_masks_are_drawn_over_examples_of_each_label(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(encode(photo(40, 30), "png"))
    classes = np.zeros((30, 40), np.uint8)
    classes[:, 30:] = 1
    rows = pa.table(
        {
            "uri": [str(path)] * 6,
            "status": ["ok"] * 6,
            "reason": pa.nulls(6, pa.string()),
            "mask": [encode_mask(classes)] * 6,
            **{
                f"share_{label}": pa.array([share] * 6, pa.float32())
                for label, share in {"background": 0.75, "tree": 0.25, "sky": 0.0}.items()
            },
        }
    )
    collector = ReportCollector()
    collector.add(rows)
    assert dict(collector.labels) == {"background": 6, "tree": 6, "sky": 0}
    drawn = [one.drawing.mask for one in collector.class_examples("tree") if one.drawing]
    assert drawn == [encode_mask(classes)] * 4
    page = page_of(collector, rows=6)
    assert page.count("tree: 25.0 % of the pixels") == 4
    assert page.count("data:image/jpeg") == 8
    assert "Confidence" not in page


def test_an_image_that_is_gone_leaves_a_place_without_a_picture() -> None:
    page = page_of(collected(result_rows([classified()], uris=["/nowhere/$x$.png"])), rows=1)
    assert "data:image/jpeg" not in page
    assert "/nowhere/$x$.png" in page


def test_thousands_of_classes_and_odd_names_are_still_a_page() -> None:
    odd = ["$\\alpha$", "a" * 500, "ü\n\u202e", ""]
    prediction = classified().prediction
    assert prediction is not None
    made = [
        Outcome(prediction=type(prediction)(name, 0.5, (name,), None, prediction.probabilities))
        for name in [*odd, *(f"class {number}" for number in range(1000))]
    ]
    page = page_of(collected(result_rows(made)), rows=len(made))
    assert f"and {len(made) - 20} more classes" in page


def test_a_very_long_message_is_shown_without_harm() -> None:
    page = page_of(collected(result_rows([failure("x" * 10**6)])), rows=1, failed=1)
    assert "truncated" in page
