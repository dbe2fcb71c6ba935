"""Parses the elements of tensors, from raw bytes and from JSON."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.serving.protocol.image_text import decode_image_text

__all__ = ["parse_json_elements", "parse_numbers", "parse_raw_elements"]

_NUMBERS: Mapping[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


def parse_raw_elements(
    name: str, datatype: str, raw: memoryview | bytes
) -> list[bytes] | npt.NDArray[Any]:
    """Parse the elements of a raw tensor.

    Raises:
        InputError: If they do not have the datatype.
    """
    if datatype == "BYTES":
        return _raw_strings(name, raw)
    dtype = _dtype(name, datatype)
    if len(raw) % dtype.itemsize:
        raise InputError(f"Input {name}: {len(raw):,} bytes are not whole elements of {datatype}.")
    return np.frombuffer(raw, dtype)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in _NUMBERS:
        raise InputError(
            f"Input {name}: datatype {datatype} is not supported; use BYTES or "
            f"{', '.join(_NUMBERS)}."
        )
    return _NUMBERS[datatype]


def _raw_strings(name: str, raw: memoryview | bytes) -> list[bytes]:
    """Parse strings that are each preceded by their length, as little-endian uint32."""
    found, position = [], 0
    while position < len(raw):
        if position + 4 > len(raw):
            raise InputError(f"Input {name}: its last element has no length.")
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4
        if position + length > len(raw):
            raise InputError(f"Input {name}: an element is longer than the tensor.")
        found.append(bytes(raw[position : position + length]))
        position += length
    return found


def parse_json_elements(name: str, datatype: str, data: Any) -> list[bytes] | npt.NDArray[Any]:
    """Parse the elements of a tensor in JSON, nested or flat.

    Raises:
        InputError: If they do not have the datatype.
    """
    if not isinstance(data, list):
        raise InputError(f"Input {name} has neither data nor binary_data_size.")
    flat = _flatten(data)
    if datatype == "BYTES":
        return _json_strings(name, flat)
    return parse_numbers(name, datatype, flat)


def _json_strings(name: str, values: Sequence[Any]) -> list[bytes]:
    """Parse strings: images from base64, since JSON has no bytes, and others as they are."""
    if not all(isinstance(value, str) for value in values):
        encoding = " in base64" if name == "image" else ""
        raise InputError(f"Input {name}: in JSON an element of BYTES is a string{encoding}.")
    if name == "image":
        return [decode_image_text(value) for value in values]
    try:
        return [value.encode() for value in values]
    except ValueError:
        raise InputError(f"Input {name}: an element is not valid text.") from None


def parse_numbers(name: str, datatype: str, values: Sequence[Any]) -> npt.NDArray[Any]:
    """Parse the elements of a tensor from Python numbers.

    Raises:
        InputError: If they do not have the datatype.
    """
    dtype = _dtype(name, datatype)
    if dtype.kind == "f":
        if not all(value is None or type(value) in (int, float) for value in values):
            raise InputError(f"Input {name}: an element of {datatype} is a number or null.")
        with np.errstate(over="ignore"):  # becomes infinite, and is refused later
            given = [math.nan if value is None else _float(value) for value in values]
            return np.asarray(given, dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if not all(type(value) is int and low <= value <= high for value in values):
        raise InputError(
            f"Input {name}: an element of {datatype} is a whole number from {low} to {high}."
        )
    return np.asarray(values, dtype)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # integers in JSON have no limit
        return math.inf


def _flatten(data: list[Any]) -> list[Any]:
    """Return the leaves of nested lists, in order."""
    leaves: list[Any] = []
    open_lists = [iter(data)]
    while open_lists:
        for item in open_lists[-1]:
            if isinstance(item, list):
                open_lists.append(iter(item))
                break
            leaves.append(item)
        else:
            open_lists.pop()
    return leaves
