"""Named tensors of the Open Inference Protocol, version 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NamedTensor", "TensorSpec", "number_tensor", "text_tensor"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that is not there yet.

    Attributes:
        name: Name of the tensor.
        datatype: `BYTES`, `FP32`, … of the protocol.
        shape: Its shape; -1 stands for the number of images.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor with its elements.

    Attributes:
        name: Name of the tensor.
        datatype: `BYTES`, `FP32`, … of the protocol.
        shape: Its shape.
        elements: Texts or files as a list of bytes, numbers as an array.
        has_files: Whether the elements are files, such as PNGs, which JSON has in base64.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: list[bytes] | npt.NDArray[Any]
    has_files: bool = False


def text_tensor(name: str, texts: list[str]) -> NamedTensor:
    """Return texts, one for each image, as a BYTES tensor."""
    return NamedTensor(name, "BYTES", (len(texts),), [text.encode() for text in texts])


def number_tensor(name: str, values: Any) -> NamedTensor:
    """Return numbers, or rows of numbers, one for each image, as an FP32 tensor."""
    array = np.asarray(values, np.float32)
    return NamedTensor(name, "FP32", array.shape, array)
