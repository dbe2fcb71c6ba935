"""Which form of response the Accept header of a request asks for."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from eagleray.serve.http.accept import prefers_picture


def request(*values: str) -> Request:
    headers = [(b"accept", value.encode()) for value in values]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    "values",
    [
        ["image/png"],
        ["image/*"],
        ["Image/PNG;q=0.5"],
        ["image/png; q=0.9, application/json;q=0.3"],
        ["image/webp, image/*;q=0.8, */*;q=0.5"],
        ["image/png,*/*;q=0.8"],
        ["image/*, */*"],
        ["text/html", "image/png"],
    ],
)
def test_a_picture_is_preferred(values: list[str]) -> None:
    assert prefers_picture(request(*values))


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["*/*"],
        ["application/json"],
        ["image/webp"],
        ["image/png, application/json"],
        ["image/png;q=0.3, application/json"],
        ["image/png;q=0"],
        ["image/png;q=0, image/*"],
        ["image/png;q=high"],
        ["image/avif,image/webp,*/*"],
    ],
)
def test_json_is_the_response_otherwise(values: list[str]) -> None:
    assert not prefers_picture(request(*values))
