"""Options of S3 become defaults of the process."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.storage import S3Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (S3Options(), {"key": "k"}),
        (S3Options(endpoint="http://a:1"), {"key": "k", "endpoint_url": "http://a:1"}),
        (S3Options(region="r"), {"key": "k", "client_kwargs": {"region_name": "r"}}),
        (S3Options(profile="p"), {"key": "k", "profile": "p"}),
        (
            S3Options(anonymous=True, requester_pays=True),
            {"key": "k", "anon": True, "requester_pays": True},
        ),
    ],
)
def test_options_become_defaults_of_the_process(
    monkeypatch: pytest.MonkeyPatch, options: S3Options, expected: dict[str, object]
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "k"})
    storage.use_s3(options)
    assert fsspec.config.conf["s3"] == expected


def test_options_not_given_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fsspec.config.conf, "s3", raising=False)
    storage.use_s3(S3Options())
    assert "s3" not in fsspec.config.conf
    storage.use_s3(S3Options(endpoint="http://a:1"))
    storage.use_s3(S3Options(region="r"))
    expected = {"endpoint_url": "http://a:1", "client_kwargs": {"region_name": "r"}}
    assert fsspec.config.conf.pop("s3") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "localhost:9000"}, "S3 endpoint 'localhost:9000' is not a URL"),
        ({"anonymous": True, "profile": "p"}, "give one of the two"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        S3Options(**options)
