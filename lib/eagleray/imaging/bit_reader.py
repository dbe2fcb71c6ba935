"""Reads the sizes in HEVC and AV1 bitstreams, bit by bit.

A container repeats the size of its picture, but decoders allocate by the size in the bitstream.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["av1_sizes", "hevc_size"]

_HEVC_SEQUENCE = 33
_AV1_SEQUENCE = 1
_MAX_LEADING_ZEROS = 32
_MAX_UNITS = 64


class _Bits:
    """Reads bits, most significant first; raises `IndexError` beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            byte = self._data[self._position >> 3]
            value = value << 1 | (byte >> (7 - (self._position & 7)) & 1)
            self._position += 1
        return value

    def skip(self, count: int) -> None:
        self._position += count

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb number (ITU-T H.265, section 9.2)."""
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
            if zeros > _MAX_LEADING_ZEROS:
                raise IndexError
        return (1 << zeros) - 1 + self.take(zeros)


def hevc_size(unit: bytes) -> tuple[int, int] | None:
    """Return (width, height) in a sequence parameter set (ITU-T H.265, section 7.3.2.2).

    Args:
        unit: A NAL unit without its length.

    Returns:
        The size; None for a unit of another type.

    Raises:
        IndexError: If the unit ends too early.
    """
    if unit[0] >> 1 & 0x3F != _HEVC_SEQUENCE:
        return None
    bits = _Bits(unit[2:130].replace(b"\0\0\3", b"\0\0"))
    bits.skip(4)
    sub_layers = bits.take(3)
    bits.skip(1 + 88 + 8)
    present = [(bits.take(1), bits.take(1)) for _ in range(sub_layers)]
    bits.skip(2 * (8 - sub_layers) if sub_layers else 0)
    for has_profile, has_level in present:
        bits.skip(88 * has_profile + 8 * has_level)
    bits.golomb()
    if bits.golomb() == 3:
        bits.skip(1)
    return bits.golomb(), bits.golomb()


def av1_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) of each sequence header among open bitstream units (AV1, section 5.3).

    Raises:
        IndexError: If a sequence header ends too early.
    """
    position = 0
    for _ in range(_MAX_UNITS):
        if position >= len(data):
            return
        head = data[position]
        position += 2 if head & 4 else 1
        size = len(data) - position
        if head & 2:
            size, position = _leb128(data, position)
        if head >> 3 & 15 == _AV1_SEQUENCE:
            yield _av1_size(_Bits(data[position : position + min(size, 128)]))
        position += size


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position of its end."""
    value = 0
    for index in range(8):
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, position + index + 1
    raise IndexError


def _av1_size(bits: _Bits) -> tuple[int, int]:
    """Read (width, height) from a sequence header (AV1, section 5.5)."""
    bits.skip(4)
    if bits.take(1):  # the reduced header of still pictures
        bits.skip(5)
    else:
        delay_length = _skip_av1_timing(bits)
        has_delays = bits.take(1)
        for _ in range(bits.take(5) + 1):  # operating points
            bits.skip(12)
            if bits.take(5) > 7:
                bits.skip(1)
            if delay_length and bits.take(1):
                bits.skip(2 * delay_length + 1)
            if has_delays and bits.take(1):
                bits.skip(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_av1_timing(bits: _Bits) -> int:
    """Skip timing information, and return the number of bits of a decoder delay, or 0."""
    if not bits.take(1):
        return 0
    bits.skip(64)
    if bits.take(1):
        bits.golomb()
    if not bits.take(1):
        return 0
    delay_length = bits.take(5) + 1
    bits.skip(32 + 5 + 5)
    return delay_length
