"""One image's bytes from wherever it is: a file, an archive, a table, an address."""

from eagleray.fetch.reader import ImageReader, fetch_image
from eagleray.fetch.source import ImageSource, Packing, packed_uri

__all__ = ["ImageReader", "ImageSource", "Packing", "fetch_image", "packed_uri"]
