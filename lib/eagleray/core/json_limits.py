"""Parses untrusted JSON within limits, as parsed values may take thirty times the text's bytes.

    parse_json(content, JsonLimits(…))      # ValueError if the text exceeds them

Values, strings and containers are counted before the text is parsed.
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
_NOT_FINITE = re.compile(rb"\b(?:NaN|Infinity)\b")
_MAX_SHOWN = 60  # characters of a key in a message


@dataclass(frozen=True)
class JsonLimits:
    """Limits of a JSON text; the parser itself allows a nesting depth of 200.

    Attributes:
        max_values: Maximum number of entries of all arrays and objects together.
        max_strings: Maximum number of strings, keys included.
        max_entries: Maximum number of entries of one array or object.
        max_containers: Maximum number of arrays and objects.
        long_keys: Keys whose arrays and objects may have up to `max_values` entries.
    """

    max_values: int
    max_strings: int
    max_entries: int
    max_containers: int
    long_keys: Collection[str] = ()


def parse_json(content: bytes, limits: JsonLimits) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: If the text is not valid JSON or exceeds the limits; the message completes a
            sentence about the file.
    """
    _check_counts(content, limits)
    try:
        values = from_json(content, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        if _NOT_FINITE.search(_TEXT.sub(b"0", content)):
            raise ValueError("it has NaN or Infinity; every number must be finite") from None
        raise ValueError(f"it is not valid JSON ({error})") from None
    _check_entries("", values, limits)
    return values


def _check_counts(content: bytes, limits: JsonLimits) -> None:
    """Check the number of values, strings and containers without parsing."""
    if content.count(b'"') > 2 * limits.max_strings:
        raise ValueError(f"it has more than {limits.max_strings:,} strings")
    outline = _TEXT.sub(b"0", content)
    if outline.count(b",") > limits.max_values:
        raise ValueError(f"it has more than {limits.max_values:,} values")
    if outline.count(b"[") + outline.count(b"{") > limits.max_containers:
        raise ValueError(f"it has more than {limits.max_containers:,} arrays and objects")


def _check_entries(key: str, value: Any, limits: JsonLimits) -> None:
    """Check the number of entries of each array and object."""
    if not isinstance(value, (list, dict)):
        return
    if len(value) > limits.max_entries and key not in limits.long_keys:
        where = repr(key[:_MAX_SHOWN]) if key else "an array or object"
        raise ValueError(f"{where} has more than {limits.max_entries:,} entries")
    entries = value.items() if isinstance(value, dict) else (("", entry) for entry in value)
    for name, entry in entries:
        _check_entries(name, entry, limits)
