"""Chooses the form of a prediction's response, JSON or a picture, by the Accept header."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from eagleray.serve.http.pictures import PICTURE

__all__ = ["prefers_picture"]

_JSON = "application/json"


def prefers_picture(request: Request) -> bool:
    """Whether a request prefers a PNG to JSON (RFC 9110, section 12.5.1).

    The one of the higher quality is preferred, then the one that is named more exactly, then JSON:
    `image/png` and `image/*` get a picture, and `*/*` and a missing header get JSON.
    """
    ranges = _media_ranges(",".join(request.headers.getlist("accept")))
    return _preference(PICTURE, ranges) > _preference(_JSON, ranges)


def _media_ranges(header: str) -> dict[str, float]:
    """Return the quality of each media range, in lower case; entries that are invalid are left out.

    Parameters other than the quality have no meaning here.
    """
    found: dict[str, float] = {}
    for entry in header.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = _quality(parameters)
        if name and quality is not None:
            found[name] = max(quality, found.get(name, 0.0))
    return found


def _quality(parameters: Sequence[str]) -> float | None:
    """Return the quality that parameters give, from 0 to 1; None if it is not such a number."""
    text = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
    try:
        quality = float(text)
    except ValueError:
        return None
    return quality if 0 <= quality <= 1 else None


def _preference(media_type: str, ranges: dict[str, float]) -> tuple[float, int]:
    """Return the quality of a media type, and how exactly it is named; the most exact range counts.

    It is (0, 0) for a type that no range includes.
    """
    main, _, _ = media_type.partition("/")
    for exactness, name in ((3, media_type), (2, f"{main}/*"), (1, "*/*")):
        if name in ranges:
            quality = ranges[name]
            return (quality, exactness) if quality else (0.0, 0)
    return 0.0, 0
