"""Reads COCO's compressed run-length encoding of masks, from sources that are not trusted.

The encoding is that of COCO's tools (`maskApi.c`): the lengths of runs of 0 and 1 in turn, column
by column, from the fourth run on as differences to the run two before, in base 32 with a sign.
Those tools read beyond the end of a damaged text, so a text is checked here before they get it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_MASK_PIXELS", "decode_runs"]

MAX_MASK_PIXELS = 2**28
"""Largest number of pixels of an image with masks; decoders allocate a byte for each."""

_FIRST, _LAST = 48, 48 + 63
_MAX_CHARACTERS = 6  # of one number; the numbers are below 2**29


def decode_runs(counts: str, height: int, width: int) -> npt.NDArray[np.int64]:
    """Return the lengths of the runs of a mask, the first of which is of pixels outside of it.

    Args:
        counts: The runs, column by column, as COCO's tools write them.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        Array (num_runs,) of lengths; their sum is the number of pixels of the image.

    Raises:
        ValueError: If the text is damaged or has another number of pixels; the message completes a
            sentence about the mask.
    """
    if height * width > MAX_MASK_PIXELS:
        raise ValueError(f"it is of {height} x {width} pixels, the limit is {MAX_MASK_PIXELS:,}")
    if not counts.isascii() or not counts:
        raise ValueError("its run lengths are empty or damaged")
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64)
    if codes.min() < _FIRST or codes.max() > _LAST:
        raise ValueError("its run lengths have characters that COCO's encoding does not use")
    runs = _sum_differences(_numbers(codes - _FIRST))
    if runs.min() < 0:
        raise ValueError("it has a run of negative length")
    if runs.sum() != height * width:
        raise ValueError(f"its runs have {int(runs.sum()):,} pixels and not {height} x {width}")
    return runs


def _numbers(codes: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the signed numbers that groups of characters stand for, the lowest digits first."""
    ends = np.flatnonzero(codes & 0x20 == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("its run lengths end early")
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError("it has a run that is too long")
    starts = ends - lengths + 1
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    is_negative = codes[ends] & 0x10 != 0
    return np.where(is_negative, values - (np.int64(1) << (5 * lengths)), values)


def _sum_differences(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Undo the differences: from the fourth number on, each is one to the run two before it."""
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs
