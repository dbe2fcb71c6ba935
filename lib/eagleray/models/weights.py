"""Checks the header of a weights file against the network that takes the weights.

    check_weights("digits/model.safetensors", file.read, file.size, architecture)   # PackageError

The header of a safetensors file is JSON before the numbers, with the type, the shape and the
position of each tensor. Only the header is read here.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eagleray.core.errors import PackageError
from eagleray.core.json_limits import parse_json
from eagleray.core.limits import HEADER_JSON, MAX_HEADER_BYTES
from eagleray.core.validation import first_validation_error
from eagleray.models.architectures import Architecture
from eagleray.models.building import build_on_meta

__all__ = ["check_weights", "max_weights_bytes", "view_reader"]

_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_METADATA = "__metadata__"
_COUNTER = "num_batches_tracked"  # of batch normalisation, which may be missing
_MAX_SHOWN = 100  # characters of a name in a message

Length = Annotated[int, Field(ge=0, lt=2**48)]


class _Tensor(BaseModel):
    """A tensor as the header describes it.

    Attributes:
        dtype: Type of the numbers, such as `F32`.
        shape: Length of each dimension.
        data_offsets: Begin and end in bytes after the header.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: Annotated[list[Length], Field(max_length=16, fail_fast=True)]
    data_offsets: Annotated[list[Length], Field(min_length=2, max_length=2)]

    @property
    def num_bytes(self) -> int:
        """Number of bytes of a tensor of this type and shape."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    @property
    def is_floating(self) -> bool:
        """Whether the type is a floating-point type."""
        return self.dtype in ("F64", "F32", "F16", "BF16")


Read = Callable[[int, int], bytes]
"""Reads bytes of a file; takes the position of the first byte and the number of bytes."""


def view_reader(content: bytes | memoryview) -> Read:
    """Return a `Read` for a file that is in memory."""
    view = memoryview(content)
    return lambda start, length: bytes(view[start : start + length])


def check_weights(
    where: str, read: Read, size: int, architecture: Architecture | None = None
) -> None:
    """Check the header of a file of weights.

    Args:
        where: Name of the file, for messages.
        read: Reads bytes of the file.
        size: Number of bytes of the file.
        architecture: The architecture that the weights must fit, which takes PyTorch to check;
            None accepts any.

    Raises:
        PackageError: If the file is not a safetensors file, or does not fit the network.
        UserError: If the architecture is not known.
        OSError: If the file cannot be read.
    """
    try:
        tensors = _read_header(read, size)
    except ValueError as error:
        raise PackageError(f"{where} is not a safetensors file ({error}).") from None
    if architecture is None:
        return
    try:
        _require_fits(tensors, architecture)
    except ValueError as error:
        raise PackageError(f"{where} does not fit {architecture.name}: {error}.") from None


def max_weights_bytes(architecture: Architecture) -> int:
    """Return the largest possible number of bytes of a network's weights file.

    Raises:
        PackageError: If no such network can be built.
        UserError: If the architecture is not known.
    """
    try:
        expected = _expected(architecture).values()
    except ValueError as error:
        raise PackageError(f"There are no weights of {architecture.name}: {error}.") from None
    largest = max(_BYTES.values())
    return MAX_HEADER_BYTES + sum(math.prod(tensor.shape) * largest for tensor in expected)


# --- the tensors of the network ---------------------------------------------------------------


@dataclass(frozen=True)
class _Expected:
    shape: list[int]
    is_floating: bool


@functools.lru_cache(maxsize=64)
def _expected(architecture: Architecture) -> Mapping[str, _Expected]:
    """Return the tensors of a network by name.

    Raises:
        ValueError: If no such network can be built.
    """
    try:
        state = build_on_meta(architecture).state_dict()
    except (
        AssertionError,
        RuntimeError,
        TypeError,
    ) as error:  # of an impossible size
        raise ValueError(f"it cannot be built ({str(error).splitlines()[0]})") from None
    return MappingProxyType(
        {
            name: _Expected(list(value.shape), value.is_floating_point())
            for name, value in state.items()
        }
    )


def _require_fits(tensors: Mapping[str, _Tensor], architecture: Architecture) -> None:
    """Compare the tensors with those of the network, without allocating any."""
    expected = _expected(architecture)
    for name, wanted in expected.items():
        found = tensors.get(name)
        if found is None:
            if name.endswith(_COUNTER):
                continue
            raise ValueError(f"they lack {name!r}")
        if found.shape != wanted.shape and (found.shape, wanted.shape) != ([1], []):
            raise ValueError(
                f"{name!r} has the shape {_shape(found.shape)}, the network takes "
                f"{_shape(wanted.shape)}"
            )
        if found.is_floating != wanted.is_floating:
            raise ValueError(f"{name!r} is of type {found.dtype}, which the network cannot take")
    unknown = next((name for name in tensors if name not in expected), None)
    if unknown is not None:
        raise ValueError(f"they have {unknown[:_MAX_SHOWN]!r}, which the network lacks")


def _shape(lengths: list[int]) -> str:
    return " x ".join(map(str, lengths)) or "of one number"


# --- the header -------------------------------------------------------------------------------


def _read_header(read: Read, size: int) -> dict[str, _Tensor]:
    """Return the tensors of a file by name.

    Raises:
        ValueError: If it is not a safetensors file; the message ends a sentence.
    """
    if size < 8:
        raise ValueError(f"a header takes 8 bytes, and the file has {size}")
    (length,) = struct.unpack("<Q", read(0, 8))
    limit = min(MAX_HEADER_BYTES, size - 8)
    if length > limit:
        raise ValueError(f"its header claims {length:,} bytes, {limit:,} is the limit")
    try:
        fields = parse_json(read(8, length), HEADER_JSON)
    except ValueError as error:
        raise ValueError(f"its header is refused: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("its header is not a JSON object")
    fields.pop(_METADATA, None)
    tensors = {name: _tensor(name, value) for name, value in fields.items()}
    _require_whole(tensors, size - 8 - length)
    return tensors


def _tensor(name: str, value: object) -> _Tensor:
    try:
        return _Tensor.model_validate(value)
    except ValidationError as error:
        raise ValueError(
            f"its header describes {name[:_MAX_SHOWN]!r} wrongly: {first_validation_error(error)}"
        ) from None


def _require_whole(tensors: Mapping[str, _Tensor], size: int) -> None:
    """Refuse tensors that overlap, leave gaps, or do not fill the file."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if begin != position or end - begin != tensor.num_bytes:
            raise ValueError(
                f"its header puts {name[:_MAX_SHOWN]!r} at bytes {begin:,} to {end:,}, where "
                f"{tensor.num_bytes:,} bytes from {position:,} on belong"
            )
        position = end
    if position != size:
        raise ValueError(
            f"its header describes {position:,} bytes of weights, the file has {size:,}"
        )
