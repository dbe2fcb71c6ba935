"""Decodes images in threads, batch by batch, ahead of the network that takes them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.imaging import DecodedImage
from eagleray.io.read_ahead import read_ahead
from eagleray.tasks.outcome import Outcome

__all__ = ["DecodedBatch", "decode_ahead"]

_BATCHES_AHEAD = 2

Decoded = DecodedImage | Outcome
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Decoded images that follow each other in the input.

    Attributes:
        images: The result of each input, in order. Pixels are views of the tensor below.
        pixels: uint8 tensor (N, H, W, C) with a row for each input; zeros for a failed one.
    """

    images: list[Decoded]
    pixels: Tensor


@dataclass(frozen=True, slots=True)
class _Chunk(Generic[T]):
    """The inputs of a batch that one thread decodes, which starts at `start` of the batch."""

    inputs: Sequence[T]
    start: int
    pixels: Tensor

    @property
    def ends_batch(self) -> bool:
        return self.start + len(self.inputs) == len(self.pixels)


def decode_ahead(
    images: Sequence[T],
    preprocess: Callable[[T], Decoded],
    *,
    shape: tuple[int, int, int],
    batch_size: int,
    num_threads: int,
    pin_memory: bool = False,
) -> Generator[DecodedBatch, None, None]:
    """Yield batches in order, while threads decode the next two.

    Args:
        images: Encoded images, or other values that `preprocess` takes.
        preprocess: Decodes one of them in a thread; it does not raise for a bad image.
        shape: Shape of a decoded image: (height, width, channels).
        batch_size: Number of inputs in a batch; the last batch may have fewer.
        num_threads: Number of decoding threads.
        pin_memory: Whether the tensors are page-locked, so that a GPU copies them asynchronously.
    """

    def chunk_size(num_images: int) -> int:
        return -(
            -num_images // num_threads
        )  # a call for each thread; one for each image costs more

    def chunks() -> Iterator[_Chunk[T]]:
        for first in range(0, len(images), batch_size):
            batch = images[first : first + batch_size]
            # PyTorch reuses page-locked memory for another batch once no copy reads it any more.
            pixels = torch.empty((len(batch), *shape), dtype=torch.uint8, pin_memory=pin_memory)
            size = chunk_size(len(batch))
            for start in range(0, len(batch), size):
                yield _Chunk(batch[start : start + size], start, pixels)

    def decode(chunk: _Chunk[T]) -> tuple[_Chunk[T], list[Decoded]]:
        rows = chunk.pixels.numpy()[chunk.start :]
        return chunk, [_decode_into(*pair, preprocess) for pair in zip(rows, chunk.inputs)]  # noqa: B905

    max_ahead = _BATCHES_AHEAD * -(-batch_size // chunk_size(batch_size))
    decoded: list[Decoded] = []
    with closing(read_ahead(decode, chunks(), threads=num_threads, max_ahead=max_ahead)) as results:
        for chunk, part in results:
            decoded += part
            if chunk.ends_batch:
                yield DecodedBatch(decoded, chunk.pixels)
                decoded = []


def _decode_into(
    row: npt.NDArray[np.uint8], value: T, preprocess: Callable[[T], Decoded]
) -> Decoded:
    """Decode an input into its row of a batch."""
    image = preprocess(value)
    if isinstance(image, DecodedImage):
        row[...] = image.pixels
        return DecodedImage(row, image.width, image.height)
    row[...] = 0
    return image
