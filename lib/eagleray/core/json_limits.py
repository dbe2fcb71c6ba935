"""Parses JSON of strangers within limits, as its values may take thirty times its bytes.

    parse_json(content, JsonLimits(…))      # ValueError: with what is wrong

What there is of it is counted before it is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

__all__ = ["JsonLimits", "parse_json"]

# Possessive, and matching an unfinished text to the end: a pass over any bytes takes linear time.
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_MAX_SHOWN = 60  # characters of a key in a message


@dataclass(frozen=True)
class JsonLimits:
    """What a JSON text may have; the parser allows 200 lists and objects inside each other.

    Attributes:
        values: Entries of all lists and objects together.
        texts: Texts, those of keys among them.
        entries: Entries of one list or object.
        containers: Lists and objects.
        long: Keys whose lists and objects may have as many entries as there may be values.
    """

    values: int
    texts: int
    entries: int
    containers: int
    long: Collection[str] = ()


def parse_json(content: bytes, limits: JsonLimits) -> Any:
    """Return the values of a JSON text.

    Raises:
        ValueError: It is no JSON, or beyond the limits; with what is wrong, as the end of a
            sentence.
    """
    _require_few(content, limits)
    try:
        values = from_json(content, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    _require_short("", values, limits)
    return values


def _require_few(content: bytes, limits: JsonLimits) -> None:
    """Count without parsing."""
    if content.count(b'"') > 2 * limits.texts:
        raise ValueError(f"it has more than {limits.texts:,} texts")
    outline = _TEXT.sub(b"0", content)
    if outline.count(b",") > limits.values:
        raise ValueError(f"it has more than {limits.values:,} values")
    if outline.count(b"[") + outline.count(b"{") > limits.containers:
        raise ValueError(f"it has more than {limits.containers:,} lists and objects")


def _require_short(key: str, value: Any, limits: JsonLimits) -> None:
    """Refuse a list or object that has too many entries."""
    if not isinstance(value, (list, dict)):
        return
    if len(value) > limits.entries and key not in limits.long:
        where = repr(key[:_MAX_SHOWN]) if key else "a list or object"
        raise ValueError(f"{where} has more than {limits.entries:,} entries")
    entries = value.items() if isinstance(value, dict) else (("", entry) for entry in value)
    for name, entry in entries:
        _require_short(name, entry, limits)
