"""Locations that lead out of where they seem to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eagleray import storage


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "open" / "inner").mkdir(parents=True)
    (tmp_path / "open-too").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "way-out").symlink_to(tmp_path / "closed")
    (tmp_path / "way-in").symlink_to(tmp_path / "open" / "inner")
    return tmp_path


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{}/open", True),
        ("{}/open/", True),
        ("{}/open/inner/a.png", True),
        ("{}/open/**/*.png", True),
        ("file://{}/open/a.png", True),
        ("{}/open/inner/../a.png", True),
        ("{}/way-in/a.png", True),
        ("{}/open/%2e%2e/a.png", True),  # a local path is taken letter by letter
        ("{}/open-too/a.png", False),
        ("{}/closed/a.png", False),
        ("{}/open/../closed/a.png", False),
        ("{}/open/way-out/a.png", False),
        ("file://{}/open/../closed/a.png", False),
        ("FILE://{}/open/a.png", False),
        ("{}/open/a\0.png", False),
        ("{}", False),
        ("/", False),
        ("s3://bucket/open", True),
        ("s3://bucket/open/a.png", True),
        ("s3://bucket/open/a..png", True),
        ("s3://bucket/open-too/a.png", False),
        ("s3://bucket/openly", False),
        ("s3://bucket/open/../closed/a.png", False),
        ("s3://bucket/open/%2e%2e/closed/a.png", False),
        ("s3://bucket/open/%252E%252E/closed/a.png", False),
        ("s3://bucket/open/..\\closed/a.png", False),
        ("s3://bucket/open/a.zip::/etc/passwd", False),
        ("tar://a.png::s3://bucket/open/a.tar", False),
        ("S3://bucket/open/a.png", False),
        ("gs://bucket/open/a.png", False),
        ("s3://other/open/a.png", False),
    ],
)
def test_where_a_location_leads(room: Path, location: str, expected: bool) -> None:
    places = [f"{room}/open/", "s3://bucket/open/"]
    assert storage.is_within(location.format(room), places) is expected


def test_a_name_that_is_not_utf8_is_followed_too(room: Path) -> None:
    link = room / "open" / os.fsdecode(b"way-\xe9")
    link.symlink_to(room / "closed")
    assert not storage.is_within(f"{room}/open/way-\\xe9/a.png", [f"{room}/open"])
    assert storage.is_within(f"{room}/open/other-\\xe9/a.png", [f"{room}/open"])


def test_what_cannot_be_a_name_is_nowhere(tmp_path: Path) -> None:
    for name in ("\ud800", "a\0b", "x" * 100_000 + "/../.."):
        assert not storage.is_within(f"{tmp_path}/in/{name}", [f"{tmp_path}/in"])


def test_nothing_is_within_nowhere() -> None:
    assert not storage.is_within("/tmp/a.png", [])
