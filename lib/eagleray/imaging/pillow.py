"""Opens an image with the Pillow or pillow-heif reader of its format, and avoids their pitfalls."""

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

_PNG_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PNG_EXIF_TEXT = b"Raw profile type exif\0"
_MAX_EXIF_BYTES = 2**20

_tiff_lock = threading.Lock()


def open_image(data: bytes, file_format: str, layout: TiffLayout | None = None) -> Image.Image:
    """Open an image; its pixels are decoded when they are loaded.

    Unlike `Image.open` this tries only one reader, whose error is specific.

    Args:
        data: The encoded image.
        file_format: Format according to the header.
        layout: Pixel layout of a TIFF.

    Raises:
        Exception: Anything that the reader raises.
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
    """Import the readers of some formats."""
    for file_format in formats:
        _reader(file_format)


@functools.cache
def _reader(file_format: str) -> _Reader:
    if file_format == "heic":
        import pillow_heif
        from pillow_heif.as_plugin import HeifImageFile

        # Callers have their own threads, and need only the primary picture.
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
    """Open an uncompressed TIFF with planar channels.

    Pillow's own reader uses the first 16-bit channel for all of them; libtiff does not. A module
    variable selects the reader, so it is set while the file is opened; other TIFFs that are opened
    meanwhile have the same pixels with either reader.
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
    """Remove texts, profiles and frames, whose size Pillow limits and which change no pixel."""
    chunks = list(_png_chunks(data))
    kept = [span for kind, span in chunks if _is_needed(kind, data, span)]
    if len(kept) == len(chunks):
        return data
    return b"".join([data[:8], *(data[span] for span in kept)])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    """Yield the type and the position of each chunk; the last one may be truncated."""
    position = 8
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        yield kind, slice(position, end)
        if kind == b"IEND":
            return
        position = end


def _is_needed(kind: bytes, data: bytes, span: slice) -> bool:
    if kind in _PNG_TEXTS:  # some programs store EXIF, with the orientation, in a text
        return data.startswith(_PNG_EXIF_TEXT, span.start + 8) and _is_small(kind, data[span])
    return kind in _PNG_NEEDED or not kind.isalpha()


def _is_small(kind: bytes, chunk: bytes) -> bool:
    """Whether a text is small enough for Pillow, also after decompression."""
    if kind != b"zTXt":
        return kind == b"tEXt" and len(chunk) <= _MAX_EXIF_BYTES
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(chunk[8 + len(_PNG_EXIF_TEXT) + 1 : -4], _MAX_EXIF_BYTES)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail
