"""Open an image with Pillow's reader of its format, or pillow-heif's, kept from their pitfalls."""

from __future__ import annotations

import functools
import io
import threading
import zlib
from collections.abc import Callable, Iterator

from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

from eagleray.imaging.heif import without_sequence
from eagleray.imaging.tiff import TiffLayout

__all__ = ["load_readers", "open_image"]

_Reader = Callable[[io.BytesIO, str], ImageFile.ImageFile]

_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PNG_EXIF_TEXT = b"Raw profile type exif\0"
_MAX_EXIF_BYTES = 2**20

_tiff_lock = threading.Lock()


def open_image(data: bytes, file_format: str, layout: TiffLayout | None = None) -> Image.Image:
    """Open an image; its pixels are decoded when they are loaded.

    Unlike `Image.open` it tries one reader, whose own error says what is wrong.

    Args:
        data: Encoded.
        file_format: As the header has it.
        layout: Of a TIFF.

    Raises:
        Exception: Whatever the reader raises.
    """
    if file_format == "png":
        data = _without_metadata(data)
    elif file_format == "avif":
        data = without_sequence(data)
    reader = _reader(file_format)
    if layout is not None and layout.in_planes and not layout.compressed:
        return _open_planes(data, reader)
    return reader(io.BytesIO(data), "")


def load_readers(formats: tuple[str, ...]) -> None:
    """Load the modules that read some formats."""
    for file_format in formats:
        _reader(file_format)


@functools.cache
def _reader(file_format: str) -> _Reader:
    if file_format == "heic":
        import pillow_heif
        from pillow_heif.as_plugin import HeifImageFile

        # Whoever calls has threads of its own; and nothing but the picture is wanted.
        pillow_heif.options.DECODE_THREADS = 1
        pillow_heif.options.THUMBNAILS = False
        pillow_heif.options.DEPTH_IMAGES = False
        pillow_heif.options.AUX_IMAGES = False
        return HeifImageFile
    if file_format == "avif":
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.init()
    reader, _ = Image.OPEN[file_format.upper()]
    return reader


def _open_planes(data: bytes, reader: _Reader) -> Image.Image:
    """Open a TIFF whose channels lie apart and are not compressed.

    Pillow itself takes the first channel of 16 bits for all of them; libtiff does not. Which of
    them reads is a module's variable, so it is changed for as long as opening takes; a TIFF that
    another thread opens meanwhile has the same pixels by either.
    """
    with _tiff_lock:
        before = TiffImagePlugin.READ_LIBTIFF
        TiffImagePlugin.READ_LIBTIFF = True
        try:
            return reader(io.BytesIO(data), "")
        finally:
            TiffImagePlugin.READ_LIBTIFF = before


# --- PNG --------------------------------------------------------------------------------------


def _without_metadata(data: bytes) -> bytes:
    """Leave out texts, profiles and frames, whose size Pillow limits and which change no pixel."""
    chunks = list(_png_chunks(data))
    kept = [place for kind, place in chunks if _is_wanted(kind, data, place)]
    if len(kept) == len(chunks):
        return data
    return b"".join([data[:8], *(data[place] for place in kept)])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    """Yield the kind of each chunk, and where it is; the last may be cut."""
    position = 8
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        yield kind, slice(position, end)
        if kind == b"IEND":
            return
        position = end


def _is_wanted(kind: bytes, data: bytes, place: slice) -> bool:
    if kind in _PNG_TEXTS:  # some programs keep EXIF, and with it the orientation, in a text
        return data.startswith(_PNG_EXIF_TEXT, place.start + 8) and _is_small(kind, data[place])
    return kind in _PNG_PIXELS or not kind.isalpha()


def _is_small(kind: bytes, chunk: bytes) -> bool:
    """Whether a text is small enough for Pillow, decompressed too."""
    if kind != b"zTXt":
        return kind == b"tEXt" and len(chunk) <= _MAX_EXIF_BYTES
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(chunk[8 + len(_PNG_EXIF_TEXT) + 1 : -4], _MAX_EXIF_BYTES)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail
