"""What a user may ask of a batch job, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.plan import PredictWork
from eagleray.batch.spec import PredictSpec
from eagleray.core.errors import InputError, UserError
from eagleray.core.settings import Settings
from eagleray.imaging.tiles import Tiling
from eagleray.sharded.failure_limit import FailureLimit
from tests.support.batch import loaded_model
from tests.support.detectors import detector_package


def request(**overrides: Any) -> PredictSpec:
    parts: dict[str, Any] = {"inputs": ("photos",), "model": "digits/3", "output": "out"}
    return PredictSpec.make({**parts, **overrides})


@pytest.mark.parametrize(
    "text", ["", "%", "some", "101%", "-1%", "nan%", "inf%", "1.5", "-3", "1e2", "1%%"]
)
def test_what_is_no_limit_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"^max_failures: write a share such as 1%[^\n]*$"):
        request(max_failures=text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"top_k": 0}, "top_k must be greater than or equal to 1"),
        ({"top_k": 1001}, "top_k must be less than or equal to 1000"),
        ({"top_k": "some"}, "top_k must be a valid integer"),
        ({"image_timeout": 0.0}, "image_timeout must be greater than 0"),
        ({"image_timeout": -1.0}, "image_timeout must be greater than 0"),
        ({"image_timeout": float("nan")}, "image_timeout must be a finite number"),
        ({"image_timeout": float("inf")}, "image_timeout must be a finite number"),
        ({"inputs": ()}, "name either inputs or failed_only"),
        ({"failed_only": "earlier"}, "and not both"),
        ({"workers": "0"}, "workers: '0' is not a number of workers such as 4"),
        ({"workers": "4..2"}, "or a range such as 4..16"),
        ({"format": "xml"}, "format: 'xml' is none of parquet, csv, jsonl"),
        ({"sql": "mysql://host/db"}, "mysql"),
        ({"allow_urls": ["http://a/b"]}, "http://a/b"),
        ({"s3_endpoint": "host:9000"}, "S3 endpoint 'host:9000' is not a URL"),
        ({"s3_anonymous": True, "s3_profile": "p"}, "give one of the two"),
        ({"topk": 3}, "Nearest: top_k"),
        ({"model": None}, "model must be a valid string"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        request(**change)
    assert sentence in str(caught.value)


def work(**fields: Any) -> PredictWork:
    loaded = loaded_model()
    return request(**fields).work(
        model_version=loaded.version,
        model_digest=loaded.package.digest,
        contract_digest=loaded.package.contract.digest,
    )


def test_work_has_absolute_locations_so_that_a_job_resumes_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = work(inputs=("photos", "s3://bucket/a"), since=("earlier",))
    assert asked.inputs == (str(tmp_path / "photos"), "s3://bucket/a")
    assert asked.since == (str(tmp_path / "earlier"),)
    assert work(inputs=(), failed_only="earlier").failed_of == str(tmp_path / "earlier")


def test_how_a_job_runs_is_no_part_of_its_work() -> None:
    other = work(workers="2..4", engine="eager", max_failures="0%", separate_decoding=True)
    assert work() == other


def test_work_comes_back_from_its_json() -> None:
    asked = work(image_timeout=0.25, format="jsonl", column="photo")
    assert PredictWork.model_validate_json(asked.model_dump_json()) == asked


def test_a_specification_comes_back_from_its_json() -> None:
    asked = request(since=["a"], workers=4, max_failures=200, allow_urls=["h"], sql="sqlite:///x")
    again = PredictSpec.model_validate_json(asked.model_dump_json(exclude_defaults=True))
    assert again == asked
    assert (again.worker_range, again.failure_limit) == ((4, 4), FailureLimit(number=200))


def test_skipped_images_follow_the_settings() -> None:
    settings = Settings(s3_region="north", s3_anonymous=True, url_private_networks="10.0.0.0/8, ")
    filled = request(s3_region="south").with_settings(settings)
    assert (filled.s3.region, filled.s3.anonymous) == ("south", True)
    assert filled.urls.private_networks == ("10.0.0.0/8",)
    own = request(s3_anonymous=False, private_networks=[]).with_settings(settings)
    assert (own.s3.anonymous, own.urls.private_networks) == (False, ())


def test_tiles_are_part_of_the_work() -> None:
    plain, tiled = work(), work(tile="640")
    assert plain.tiling is None
    assert tiled.tiling == "640, overlap 0.2"
    assert tiled.differences(plain) == ["tiling is None there and 640, overlap 0.2 here"]
    package = detector_package()
    assert request(tile="auto", tile_whole=True).tiling(package) == Tiling(
        max(64, *package.contract.size), 0.2, whole=True
    )
