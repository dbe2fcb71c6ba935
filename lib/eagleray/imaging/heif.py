"""Reads the header of a HEIC or AVIF file (ISO 23008-12): items, tiles and sizes.

    meta    pitm primary item, iinf item types, iref references, iloc locations, iprp properties

A picture is coded, or derived from other pictures: a grid of tiles, or a copy. Every coded picture
that a decoder would process is checked by its size in the container and by that in its bitstream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging.bit_reader import av1_sizes, hevc_size
from eagleray.imaging.header import (
    MAX_BLOCKS,
    MAX_TILE_PIXELS,
    Header,
    damaged,
    truncated,
    unsupported,
)

__all__ = ["heif_format", "read_heif", "without_sequence"]

MAX_ITEMS = 2**12
MAX_TILES = 2**11
MAX_DERIVATIONS = 4
MAX_EXTENTS = 64  # of an item
MAX_CROPPED_PIXELS = 2**16  # encoders pad small pictures

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_GENERAL_BRANDS = {b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"}
_CODINGS = {"heic": b"hvc1", "avif": b"av01"}
_CONFIGURATIONS = {b"hvc1": b"hvcC", b"av01": b"av1C"}
_HEVC_ARRAYS = 22  # offset in a decoder configuration


@dataclass(slots=True)
class _Item:
    """An item of the file: a coded or derived picture, or something else.

    Attributes:
        kind: Type of the item, four characters.
        properties: Indices of its properties.
        extents: Start and end of each part of its data in the file.
        references: Items that it refers to, by reference type.
        is_external: Whether its data are outside of the file, or located in an unsupported way.
    """

    kind: bytes = b""
    properties: list[int] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)
    is_external: bool = False


@dataclass(slots=True)
class _Meta:
    """Contents of the file's `meta` box."""

    items: dict[int, _Item] = field(default_factory=dict)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    primary: int = 0
    num_associations: int = 0

    def item(self, number: int) -> _Item:
        if number not in self.items and len(self.items) >= MAX_ITEMS:
            raise damaged(f"the file has more than {MAX_ITEMS:,} items")
        return self.items.setdefault(number, _Item())

    def property(self, item: _Item, kind: bytes) -> bytes | None:
        """Return the first property of a type that an item has."""
        for index in item.properties:
            if 0 < index <= len(self.properties) and self.properties[index - 1][0] == kind:
                return self.properties[index - 1][1]
        return None


def heif_format(data: bytes) -> str | None:
    """Return `heic` or `avif` according to the brands of a file; None for neither."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 1024)
    major = data[8:12]
    brands = {major, *(data[start : start + 4] for start in range(16, end, 4))}
    if major in _HEIC_BRANDS:
        return "heic"
    if major in _AVIF_BRANDS:
        return "avif"
    if major not in _GENERAL_BRANDS:
        return None
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heic" if brands & _HEIC_BRANDS else None


def without_sequence(data: bytes) -> bytes:
    """Return an AVIF whose still picture, which was checked, is decoded instead of its frames."""
    return data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data


def read_heif(data: bytes, file_format: str) -> Header:
    """Read the header of a HEIC or AVIF.

    Args:
        data: The whole file.
        file_format: `heic` or `avif`, according to its brands.

    Raises:
        BadImageError: If it is damaged, or of an unsupported kind.
        struct.error, IndexError: If it ends inside its header.
    """
    meta = _read_meta(data)
    if meta.primary not in meta.items:
        raise damaged(f"the {file_format} has no primary picture")
    primary = meta.items[meta.primary]
    checker = _SizeChecker(data, meta, file_format)
    checker.shown = size = checker.size_of(meta.primary)
    for number, item in meta.items.items():  # transparency is decoded too
        if meta.primary in item.references.get(b"auxl", ()):
            checker.size_of(number)
    if file_format == "avif" and meta.property(primary, b"clap") is not None:
        raise unsupported("an AVIF with a crop (clap) is not read")
    return Header(file_format, *_shown_size(meta, primary, size))


def _shown_size(meta: _Meta, item: _Item, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a picture's crop, unless it is much smaller than the picture."""
    crop = meta.property(item, b"clap")
    if crop is None:
        return size
    width, width_unit, height, height_unit = struct.unpack_from(">4I", crop)
    shown = width // max(width_unit, 1), height // max(height_unit, 1)
    is_inside = 0 < shown[0] <= size[0] and 0 < shown[1] <= size[1]
    is_similar = size[0] * size[1] <= max(4 * shown[0] * shown[1], MAX_CROPPED_PIXELS)
    return shown if is_inside and is_similar else size


@dataclass
class _SizeChecker:
    """Follows a picture to the coded pictures that it consists of, and checks their sizes."""

    data: bytes
    meta: _Meta
    file_format: str
    shown: tuple[int, int] = (0, 0)
    num_tiles: int = 0
    num_units: int = 0
    known: dict[int, tuple[int, int]] = field(default_factory=dict)

    def size_of(self, number: int, depth: int = 0) -> tuple[int, int]:
        """Return (width, height) of a picture.

        Raises:
            BadImageError: If a decoder would allocate far more than is shown, or the picture is of
                an unsupported kind.
        """
        if number not in self.known:
            self.known[number] = self._check_item(self.meta.items.get(number, _Item()), depth)
        return self.known[number]

    def _check_item(self, item: _Item, depth: int) -> tuple[int, int]:
        stated = self.meta.property(item, b"ispe")
        size = struct.unpack_from(">II", stated, 4) if stated else None
        if item.kind == _CODINGS[self.file_format]:
            coded = self._coded_size(item)
            size = size or coded
            self._check_coded_size(coded, size)
            self._require_data(item)
        elif item.kind in (b"grid", b"iden"):
            size = self._derived(item, size, depth)
        else:
            kind = item.kind.decode("ascii", "replace") or "unknown"
            raise unsupported(
                f"{self.file_format.upper()} is not read where the picture is coded as {kind!r}"
            )
        return size

    def _derived(self, item: _Item, size: tuple[int, int] | None, depth: int) -> tuple[int, int]:
        if depth >= MAX_DERIVATIONS:
            raise damaged(f"the {self.file_format} derives its picture too many times")
        sources = item.references.get(b"dimg", [])
        if item.kind == b"iden":
            if len(sources) != 1:
                raise damaged(f"the {self.file_format} copies a picture that does not exist")
            return self.size_of(sources[0], depth + 1)
        rows, columns, *canvas = self._grid(item)
        self.num_tiles += len(sources)
        if rows * columns != len(sources):
            raise damaged(
                f"the {self.file_format} has {len(sources):,} tiles instead of {rows} x {columns}"
            )
        if self.num_tiles > MAX_TILES:
            raise damaged(
                f"the {self.file_format} has {self.num_tiles:,} tiles, {MAX_TILES:,} is the limit"
            )
        width, height = canvas
        size = max(size or (0, 0), (width, height), key=lambda one: one[0] * one[1])
        sizes = [self.size_of(source, depth + 1) for source in sources]
        total = sum(tile_width * tile_height for tile_width, tile_height in sizes)
        self._check_coded_size((total, 1), size)
        return size

    def _grid(self, item: _Item) -> tuple[int, int, int, int]:
        """Return rows, columns, width and height of a grid."""
        content = self._content(item, 12)
        letter = "I" if content[1] & 1 else "H"
        rows, columns, width, height = struct.unpack_from(f">xxBB{letter}{letter}", content)
        return rows + 1, columns + 1, width, height

    def _coded_size(self, item: _Item) -> tuple[int, int]:
        """Return the largest size in the parameters of a coded picture."""
        configuration = self.meta.property(item, _CONFIGURATIONS[item.kind]) or b""
        if item.kind == b"av01":
            sizes = [*av1_sizes(configuration[4:]), *av1_sizes(self._content(item, 4096))]
        else:
            units = [*_hevc_parameters(configuration), *self._hevc_units(item, configuration)]
            sizes = [size for unit in units if unit and (size := hevc_size(unit)) is not None]
        if not sizes:
            raise damaged(f"the {self.file_format} has a picture without parameters")
        return max(sizes, key=lambda one: one[0] * one[1])

    def _hevc_units(self, item: _Item, configuration: bytes) -> Iterator[bytes]:
        """Yield the starts of the NAL units in a picture's data, which may contain parameters."""
        length_size = (configuration[21] & 3) + 1 if len(configuration) > 21 else 4
        for start, end in item.extents:
            position = start
            while position + length_size < end:
                length = int.from_bytes(self.data[position : position + length_size], "big")
                position += length_size
                yield self.data[position : min(position + length, position + 160, end)]
                position += length
                self.num_units += 1
                if self.num_units > MAX_BLOCKS:
                    raise damaged("the heic has too many units in a picture")

    def _content(self, item: _Item, length: int) -> bytes:
        """Return the first bytes of an item's data."""
        parts = [self.data[start : min(end, start + length)] for start, end in item.extents]
        return b"".join(parts)[:length]

    def _require_data(self, item: _Item) -> None:
        if item.is_external:
            raise unsupported(f"{self.file_format.upper()} with data in another file is not read")
        if not item.extents:
            raise damaged(f"the {self.file_format} has a picture without data")
        end = max(end for _, end in item.extents)
        if end > len(self.data):
            raise truncated(
                f"the {self.file_format} data end early ({len(self.data):,} of {end:,} bytes)"
            )

    def _check_coded_size(self, coded: tuple[int, int], size: tuple[int, int]) -> None:
        shown = max(size[0] * size[1], self.shown[0] * self.shown[1])
        if coded[0] * coded[1] > max(4 * shown, MAX_TILE_PIXELS):
            raise BadImageError(
                Reason.TOO_MANY_PIXELS,
                f"coded pictures of {coded[0]:,} x {coded[1]:,} pixels are far larger than the "
                f"image of {size[0]:,} x {size[1]:,}",
            )


def _hevc_parameters(configuration: bytes) -> Iterator[bytes]:
    """Yield the NAL units in a decoder's configuration (ISO 14496-15)."""
    if len(configuration) <= _HEVC_ARRAYS:
        return
    position = _HEVC_ARRAYS + 1
    for _ in range(configuration[_HEVC_ARRAYS]):
        (count,) = struct.unpack_from(">xH", configuration, position)
        position += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", configuration, position)
            yield configuration[position + 2 : position + 2 + length]
            position += 2 + length


# --- boxes ------------------------------------------------------------------------------------


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box, and the start and end of its content (ISO 14496-12)."""
    for _ in range(MAX_BLOCKS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        stop = start + size if size else end
        if stop < content:
            raise damaged(f"a box has a size of {size} bytes")
        yield kind, content, stop
        start = stop
    raise damaged(f"the file has more than {MAX_BLOCKS:,} boxes")


def _read_meta(data: bytes) -> _Meta:
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        if end > len(data):
            raise truncated()
        meta, idat = _Meta(), 0
        boxes = list(_boxes(data, start + 4, end))
        for inner, begin, _ in boxes:
            idat = begin if inner == b"idat" else idat
        for inner, begin, stop in boxes:
            if inner in _BOX_READERS:
                _BOX_READERS[inner](meta, data[begin : min(stop, end)])
            elif inner == b"iloc":
                _read_locations(meta, data[begin : min(stop, end)], idat)
        return meta
    if data[8:12] in (b"avis", b"msf1", b"hevc", b"hevx") and len(data) > 16:
        raise unsupported("an image sequence without a still picture is not read")
    raise truncated("the file ends before it describes its picture")


def _read_primary(meta: _Meta, box: bytes) -> None:
    (meta.primary,) = struct.unpack_from(">H" if box[0] == 0 else ">I", box, 4)


def _read_kinds(meta: _Meta, box: bytes) -> None:
    start = 6 if box[0] == 0 else 8
    for kind, begin, end in _boxes(box, start, len(box)):
        if kind == b"infe" and box[begin] >= 2:
            number, shape = (">H", 8) if box[begin] == 2 else (">I", 10)
            (item,) = struct.unpack_from(number, box, begin + 4)
            meta.item(item).kind = box[begin + shape : min(begin + shape + 4, end)]


def _read_references(meta: _Meta, box: bytes) -> None:
    letter = "H" if box[0] == 0 else "I"
    for kind, begin, _ in _boxes(box, 4, len(box)):
        source, count = struct.unpack_from(f">{letter}H", box, begin)
        start = begin + struct.calcsize(f">{letter}H")
        targets = struct.unpack_from(f">{count}{letter}", box, start)
        meta.item(source).references.setdefault(kind, []).extend(targets)


def _read_properties(meta: _Meta, box: bytes) -> None:
    for kind, begin, end in _boxes(box, 0, len(box)):
        if kind == b"ipco":
            found = _boxes(box, begin, min(end, len(box)))
            meta.properties = [(name, box[start:stop]) for name, start, stop in found]
        elif kind == b"ipma":
            _read_associations(meta, box[begin:end])


def _read_associations(meta: _Meta, box: bytes) -> None:
    number = ">H" if box[0] == 0 else ">I"
    size, mask = (2, 0x7FFF) if box[3] & 1 else (1, 0x7F)
    (count,) = struct.unpack_from(">I", box, 4)
    position = 8
    for _ in range(min(count, MAX_ITEMS + 1)):
        (item,) = struct.unpack_from(number, box, position)
        position += struct.calcsize(number)
        num_properties = box[position]
        indices = struct.unpack_from(
            f">{num_properties}{'H' if size == 2 else 'B'}", box, position + 1
        )
        position += 1 + size * num_properties
        meta.item(item).properties += [index & mask for index in indices]


def _read_locations(meta: _Meta, box: bytes, idat: int) -> None:
    """Read the locations of items; `idat` is the start of the data inside `meta`."""
    version = box[0]
    sizes = box[4] >> 4, box[4] & 15, box[5] >> 4, box[5] & 15 if version else 0
    position = 6

    def take(size: int) -> int:
        nonlocal position
        if position + size > len(box):
            raise IndexError
        position += size
        return int.from_bytes(box[position - size : position], "big")

    for _ in range(take(2 if version < 2 else 4)):
        item = meta.item(take(2 if version < 2 else 4))
        method = take(2) & 15 if version else 0
        item.is_external = take(2) != 0 or method > 1
        base = take(sizes[2]) + (idat if method == 1 else 0)
        num_extents = take(2)
        if num_extents > MAX_EXTENTS:
            raise damaged(f"the file has an item in {num_extents:,} extents")
        for _ in range(num_extents):
            take(sizes[3])
            start = base + take(sizes[0])
            item.extents.append((start, start + take(sizes[1])))


_BOX_READERS = {
    b"pitm": _read_primary,
    b"iinf": _read_kinds,
    b"iref": _read_references,
    b"iprp": _read_properties,
}
