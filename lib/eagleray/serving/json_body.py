"""JSON that callers send, read without more memory than its length lets one expect.

A value of JSON may take thirty times its length in memory: `[],` is three bytes, and an empty list
of Python with its place in another one is sixty-four. So the values are counted before they are
read, by the characters that part them.
"""

from __future__ import annotations

import json
from typing import Any

from eagleray.core.errors import InputError
from eagleray.serving.problems import TooLargeError

__all__ = ["MAX_NUMBERS", "MAX_VALUES", "read_json"]

MAX_VALUES = 100_000
"""Of a body whose images are texts."""

MAX_NUMBERS = 2_000_000
"""Of a body whose images may be lists of numbers."""


def read_json(body: bytes, *, max_values: int = MAX_VALUES) -> Any:
    """Read a body of JSON.

    Args:
        body: As it came.
        max_values: That it may hold, roughly.

    Raises:
        InputError: It is no JSON.
        TooLargeError: It holds too many values.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise TooLargeError(
            f"The JSON holds more than {max_values:,} values; send the images as they are, or "
            "their tensors as raw bytes."
        )
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of endless digits
        raise InputError(f"The body is no JSON ({error}).") from None
