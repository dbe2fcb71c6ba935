"""Images decoded in threads, batch by batch, ahead of the network that takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.imaging import DecodedImage
from eagleray.tasks.outcome import Outcome

__all__ = ["DecodedBatch", "decode_ahead"]

_BATCHES_AHEAD = 2

Decoded = DecodedImage | Outcome
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Consecutive inputs, decoded.

    Attributes:
        images: What became of each input, in order. Pixels are views of the tensor below.
        pixels: uint8 tensor (N, H, W, C), a row for each input; zeros where an input failed.
    """

    images: list[Decoded]
    pixels: Tensor


def decode_ahead(
    images: Sequence[T],
    preprocess: Callable[[T], Decoded],
    *,
    shape: tuple[int, int, int],
    batch_size: int,
    num_threads: int,
    pin_memory: bool = False,
) -> Generator[DecodedBatch, None, None]:
    """Yield batches in order; while the reader has one, the next two are being decoded.

    Args:
        images: Encoded images, or whatever `preprocess` takes.
        preprocess: Decodes one of them; called from several threads, never raises for a bad image.
        shape: Of a decoded image: (height, width, channels).
        batch_size: Inputs in a batch; the last batch has what is left.
        num_threads: That decode.
        pin_memory: Whether the tensors are page-locked, so that a GPU copies them by itself.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    ahead: deque[tuple[list[Future[list[Decoded]]], Tensor]] = deque()
    try:
        for start in range(0, len(images), batch_size):
            inputs = images[start : start + batch_size]
            # PyTorch keeps page-locked memory for the next one, once no copy reads it any more.
            pixels = torch.empty((len(inputs), *shape), dtype=torch.uint8, pin_memory=pin_memory)
            ahead.append((_begin(pool, inputs, preprocess, pixels, num_threads), pixels))
            if len(ahead) > _BATCHES_AHEAD:
                yield _finish(*ahead.popleft())
        while ahead:
            yield _finish(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(
    pool: ThreadPoolExecutor,
    inputs: Sequence[T],
    preprocess: Callable[[T], Decoded],
    pixels: Tensor,
    num_threads: int,
) -> list[Future[list[Decoded]]]:
    rows = pixels.numpy()
    size = -(-len(inputs) // num_threads)  # one call a thread: a call for each image costs more
    return [
        pool.submit(
            _decode_into, rows[start : start + size], inputs[start : start + size], preprocess
        )
        for start in range(0, len(inputs), size)
    ]


def _decode_into(
    rows: npt.NDArray[np.uint8], inputs: Sequence[T], preprocess: Callable[[T], Decoded]
) -> list[Decoded]:
    """Decode inputs into the rows of a batch, here in the thread rather than in its reader."""
    results: list[Decoded] = []
    for row, data in zip(rows, inputs, strict=True):
        image = preprocess(data)
        if isinstance(image, DecodedImage):
            row[...] = image.pixels
            image = DecodedImage(row, image.width, image.height)
        else:
            row[...] = 0
        results.append(image)
    return results


def _finish(parts: list[Future[list[Decoded]]], pixels: Tensor) -> DecodedBatch:
    return DecodedBatch([image for part in parts for image in part.result()], pixels)
