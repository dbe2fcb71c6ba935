"""Reads and writes COCO's compressed run-length encoding of masks.

The encoding is that of COCO's tools (`maskApi.c`): the lengths of runs of 0 and 1 in turn, column
by column, from the fourth run on as differences to the run two before, in base 32 with a sign.
Those tools read beyond the end of a damaged text, so a text from a source that is not trusted is
checked here before they get it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_MASK_PIXELS", "decode_runs", "encode_runs", "inside_runs", "runs_of_numbers"]

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


def inside_runs(counts: str, height: int, width: int) -> npt.NDArray[Any]:
    """Return the pixels of a mask as what indexes a flat array, column by column.

    It is a boolean array or one of places, whichever is smaller.

    Args:
        counts: The runs, column by column, as COCO's tools write them.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: As `decode_runs`.
    """
    runs = decode_runs(counts, height, width)
    lengths = runs[1::2]
    if lengths.sum() * 8 > runs.sum():
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    starts = (runs.cumsum() - runs)[1::2]
    first = np.repeat(starts - (lengths.cumsum() - lengths), lengths)
    return first + np.arange(len(first))


def encode_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> str:
    """Return the compressed encoding of a mask, as COCO's tools write it.

    Args:
        runs: Lengths of its runs, the first of which is of pixels outside of it.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    from faster_coco_eval.core import mask as coco

    lengths = runs.tolist()
    if len(lengths) > 1 and lengths[-1] == 0:  # COCO's tools write no empty run at the end
        lengths.pop()
    plain = {"size": [height, width], "counts": lengths}
    counts: bytes = coco.frPyObjects(plain, height, width)["counts"]
    return counts.decode("ascii")


def runs_of_numbers(numbers: npt.NDArray[np.integer[Any]]) -> dict[int, npt.NDArray[np.int64]]:
    """Return the lengths of the runs of each number in an array (height, width), rising.

    One pass over the columns finds the runs of all numbers, however many there are. The runs of a
    number are those outside and inside of it in turn, column by column, the first one outside.
    """
    flat = np.asarray(numbers).ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], len(flat))
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    found, firsts = np.unique(values[order], return_index=True)
    runs = {}
    for number, places in zip(found.tolist(), np.split(order, firsts[1:]), strict=True):
        edges = np.column_stack((starts[places], ends[places])).ravel()
        runs[number] = np.diff(edges, prepend=0, append=len(flat))
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
