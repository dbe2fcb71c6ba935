"""Locations that lead out of where they seem to be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from eagleray.batch.spec import PredictSpec
from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.fetch import ImageSource, may_read
from eagleray.serving.config import ServiceConfig


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
        ("s3://bucket/open/.\t./closed/a.png", False),
        ("s3://key:secret@bucket/open/a.png", False),
        ("s3:///bucket/open/a.png", False),
        ("s3://bucket//open/a.png", False),
        ("s3://bucket/open/%" + "25" * 9 + "2e", False),
        ("s3://bucket/op\u0435n/a.png", False),
        ("s3://bucket/open./a.png", False),
        ("s3://bucket/open/a.png?versionId=1", True),
        ("file:{}/open/a.png", False),
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


def test_no_length_of_a_name_takes_long(tmp_path: Path) -> None:
    """Each of these took minutes, or would have, had all of it been followed or decoded."""
    began = time.monotonic()
    for name in ("a/" * 4_000_000, "../" * 4_000_000, "\\xe9/" * 1_000_000):
        assert not storage.is_within(f"{tmp_path}/{name}", [str(tmp_path)])
    for name in ("%" + "25" * 4_000_000 + "2e", "::" * 4_000_000):
        assert not storage.is_within(f"s3://bucket/{name}", ["s3://bucket"])
    row = ImageSource("zip://a" + f"::{tmp_path}/a" * 100_000)
    assert may_read(row, storage.PathPolicy((str(tmp_path),)))
    assert time.monotonic() - began < 5


def test_a_policy_goes_by_where_its_places_lead(room: Path) -> None:
    policy = storage.PathPolicy((f"{room}/way-in",))
    assert policy.allows(f"{room}/open/inner/a.png")
    assert not policy.allows(f"{room}/open/a.png")
    assert storage.PathPolicy().allows("webhdfs://anywhere")
    assert not storage.PathPolicy(()).allows(f"{room}/open")


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("s3://", r"names no bucket; write s3://BUCKET/…\.$"),
        ("s3:///", "names no bucket"),
        ("webhdfs://host/x", "is not opened"),
        ("http://host/x", "is not fetched"),
        ("zip://a::s3://bucket/x", "is not opened"),
        ("s3://a:b@bucket/x", "a user name or a password"),
        ("s3://bucket/a/../b", "contains '..'"),
    ],
)
def test_an_invalid_prefix_is_rejected(prefix: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        storage.require_prefix(prefix)
    with pytest.raises(InputError, match=r"^batch_inputs\.0: "):
        ServiceConfig.make({"batch_inputs": [prefix]})
    with pytest.raises(InputError, match=words.removesuffix(r"\.$")):
        PredictSpec.make({"inputs": ["a"], "model": "m", "output": "out", "allow_path": [prefix]})


@pytest.mark.parametrize("prefix", ["/data", "data", "s3://bucket", "s3://bucket/", "memory://a"])
def test_a_prefix_is_a_folder_or_a_uri(prefix: str) -> None:
    storage.require_prefix(prefix)


def test_no_location_is_below_an_empty_list_of_prefixes() -> None:
    assert not storage.is_within("/tmp/a.png", [])
