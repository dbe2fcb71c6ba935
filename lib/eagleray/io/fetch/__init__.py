"""Reads the bytes of one image from a file, an archive, a table or an http(s) address."""

from eagleray.io.fetch.locate import may_read
from eagleray.io.fetch.reader import ImageReader, fetch_image
from eagleray.io.fetch.source import ImageSource, Packing, packed_uri, packing_of

__all__ = [
    "ImageReader",
    "ImageSource",
    "Packing",
    "fetch_image",
    "may_read",
    "packed_uri",
    "packing_of",
]
