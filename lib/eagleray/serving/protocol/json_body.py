"""Parses JSON from callers with bounded memory.

A JSON value can take thirty times its length in memory: `[],` is three bytes, and an empty list of
Python with its slot in another list is sixty-four. So the values are counted before the body is
parsed, by the characters that separate them.
"""

from __future__ import annotations

import json
from typing import Any

from eagleray.core.errors import InputError
from eagleray.serving.problems import TooLargeError

__all__ = ["MAX_NUMBERS", "MAX_VALUES", "read_json"]

MAX_VALUES = 100_000
"""Maximum number of values in a body whose images are strings."""

MAX_NUMBERS = 2_000_000
"""Maximum number of values in a body whose images may be lists of numbers."""


def read_json(body: bytes, *, max_values: int = MAX_VALUES) -> Any:
    """Parse a JSON body.

    Args:
        body: The body as received.
        max_values: Approximate maximum number of values.

    Raises:
        InputError: If the body is not JSON.
        TooLargeError: If the body holds too many values.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise TooLargeError(
            f"The JSON holds more than {max_values:,} values; send the images as files, or "
            "their tensors as raw bytes."
        )
    try:
        return json.loads(body)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: or too many digits
        raise InputError(f"The body is not JSON ({error}).") from None
