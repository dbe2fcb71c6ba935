"""What a user may ask of a batch job, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.plan import PredictWork
from eagleray.batch.spec import JobRequest
from eagleray.core.errors import InputError
from eagleray.sharded.failure_limit import FailureLimit
from tests.support.batch import loaded_model


def request(**overrides: Any) -> JobRequest:
    parts: dict[str, Any] = {"inputs": ("photos",), "model": "digits/3", "output": "out"}
    return JobRequest(**{**parts, **overrides})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"top_k": 0}, "--top-k must be 1 to 1000, not 0"),
        ({"top_k": 1001}, "--top-k must be 1 to 1000"),
        ({"seconds_per_image": 0.0}, "--image-timeout must be a number above 0"),
        ({"seconds_per_image": -1.0}, "--image-timeout must be a number above 0"),
        ({"seconds_per_image": float("nan")}, "--image-timeout must be a number above 0, not nan"),
        ({"seconds_per_image": float("inf")}, "--image-timeout must be a number above 0, not inf"),
        ({"inputs": ()}, "Name inputs, or an earlier output"),
        ({"failed_of": "earlier"}, "and not both"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        request(**change)
    assert sentence in str(caught.value)


def test_work_names_places_absolutely_so_that_a_job_goes_on_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = request(inputs=("photos", "s3://bucket/a"), since=("earlier",)).work(loaded_model())
    assert asked.inputs == (str(tmp_path / "photos"), "s3://bucket/a")
    assert asked.since == (str(tmp_path / "earlier"),)
    again = request(inputs=(), failed_of="earlier").work(loaded_model())
    assert again.failed_of == str(tmp_path / "earlier")


def test_how_a_job_runs_is_no_part_of_its_work() -> None:
    loaded = loaded_model()
    one = request().work(loaded)
    other = request(
        workers=(2, 4), compile_mode="never", max_failures=FailureLimit(share=0.0), split=True
    ).work(loaded)
    assert one == other


def test_work_comes_back_from_its_json() -> None:
    asked = request(seconds_per_image=0.25, output_format="jsonl", column="photo").work(
        loaded_model()
    )
    assert PredictWork.model_validate_json(asked.model_dump_json()) == asked
