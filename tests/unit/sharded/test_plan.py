"""The plan: claimed by one run, continued by others, refused for other work."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.plan import PredictPlan
from eagleray.core.errors import OutputExistsError
from eagleray.io import storage
from eagleray.packing.plan import PackPlan
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.plan import claim_plan, new_id, read_plan, require_same_work
from tests.support.batch import work


def plan(**overrides: Any) -> PredictPlan:
    parts: dict[str, Any] = {
        "job_id": new_id(),
        "created": "2026-01-01T00:00:00+00:00",
        "work": work(),
        "task": "multiclass",
        "architecture": "lenet5",
        "contract": "{}",
        "manifest": f"manifest-{new_id()}",
        "manifest_digest": "0" * 64,
        "num_rows": 3,
        "num_shards": 1,
        "rows_per_file": 1000,
    }
    return PredictPlan(**{**parts, **overrides})


def test_an_output_without_a_plan_has_none(tmp_path: Path) -> None:
    assert read_plan(OutputLayout(str(tmp_path / "new")), PredictPlan) is None


def test_the_first_plan_stands_and_the_second_joins_it(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    first, second = plan(), plan()
    assert claim_plan(layout, first) == first
    assert claim_plan(layout, second) == first
    assert read_plan(layout, PredictPlan) == first


def test_of_many_runs_one_makes_the_plan(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    start = threading.Barrier(8)
    claimed: list[PredictPlan] = []

    def run() -> None:
        start.wait()
        claimed.append(claim_plan(layout, plan()))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 8
    assert {one.job_id for one in claimed} == {claimed[0].job_id}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inputs": ("/other",)}, "inputs is /images there and /other here"),
        ({"model": "digits/4", "model_version": "4"}, "model is digits/3 there and digits/4 here"),
        ({"model_digest": "ff"}, "model_digest is "),
        ({"contract_digest": "ff"}, "contract_digest is "),
        ({"column": "photo"}, "column is None there and photo here"),
        ({"since": ("/a", "/b")}, "since is  there and /a, /b here"),
        ({"failed_of": "/a"}, "failed_of is None there and /a here"),
        ({"url_hosts": ("example.com",)}, "url_hosts is "),
        ({"precision": "float32"}, "precision is auto there and float32 here"),
        ({"top_k": 3}, "top_k is 2 there and 3 here"),
        ({"seconds_per_image": 1.0}, "seconds_per_image is 60.0 there and 1.0 here"),
        ({"format": "csv"}, "format is parquet there and csv here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_work_is_refused_with_what_differs(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    layout = OutputLayout(str(tmp_path))
    there = claim_plan(layout, plan())
    require_same_work(layout, there, work())
    with pytest.raises(OutputExistsError, match="another plan") as caught:
        require_same_work(layout, there, work(**change))
    assert sentence in str(caught.value)
    with pytest.raises(OutputExistsError, match="another plan"):
        claim_plan(layout, plan(work=work(**change)))


def test_long_values_are_cut_in_the_sentence() -> None:
    (difference,) = work().differences(work(inputs=tuple(f"/images/{n}" for n in range(1000))))
    assert len(difference) < 200


@pytest.mark.parametrize(
    ("content", "field"),
    [(b"{}", "job_id"), (b"not json", "Invalid JSON"), (b"", "Invalid JSON")],
)
def test_a_plan_of_another_version_is_one_sentence(
    tmp_path: Path, content: bytes, field: str
) -> None:
    layout = OutputLayout(str(tmp_path))
    storage.put_atomic(layout.plan, content)
    with pytest.raises(OutputExistsError, match=r"^[^\n]+$") as caught:
        read_plan(layout, PredictPlan)
    assert field in str(caught.value)


def test_a_described_plan_omits_empty_fields() -> None:
    words = plan(work=work(inputs=("/a", "/b"))).describe()
    assert words["inputs"] == "/a, /b"
    assert words["num_rows"] == 3
    assert not {"column", "since", "failed_of", "url_hosts", "work"} & set(words)


# --- other versions and other kinds of jobs ---------------------------------------------------


def as_before(made: PredictPlan) -> dict[str, Any]:
    """Return a plan as the version before wrote it."""
    fields: dict[str, Any] = json.loads(made.model_dump_json())
    del fields["kind"]
    fields["rows_per_part"] = fields.pop("rows_per_file")
    return fields


def test_a_plan_of_the_version_before_is_continued(tmp_path: Path) -> None:
    layout, made = OutputLayout(str(tmp_path)), plan()
    storage.put_atomic(layout.plan, json.dumps(as_before(made)).encode())
    assert read_plan(layout, PredictPlan) == made
    assert claim_plan(layout, plan()) == made


def test_a_packing_plan_of_the_version_before_is_one_sentence(tmp_path: Path) -> None:
    layout, fields = OutputLayout(str(tmp_path)), as_before(plan())
    for name in ("work", "task", "architecture", "contract", "rows_per_part"):
        del fields[name]
    fields["pack"] = {"inputs": ["/images"], "column": None, "format": "parquet"}
    storage.put_atomic(layout.plan, json.dumps(fields).encode())
    for kind in (PackPlan, PredictPlan):
        with pytest.raises(OutputExistsError, match=r"^[^\n]+another version[^\n]+$"):
            read_plan(layout, kind)


def test_a_plan_of_another_kind_of_job_is_one_sentence(tmp_path: Path) -> None:
    layout = OutputLayout(str(tmp_path))
    claim_plan(layout, plan())
    with pytest.raises(OutputExistsError, match=r"^[^\n]+another kind of job[^\n]+$"):
        read_plan(layout, PackPlan)
