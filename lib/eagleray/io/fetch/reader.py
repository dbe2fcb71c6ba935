"""Reads one image's encoded bytes, and turns every error into a reason code."""

from __future__ import annotations

import errno
import functools
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from eagleray.core.errors import BadImageError, InputError, Reason
from eagleray.imaging import ImageContract
from eagleray.io import storage
from eagleray.io.fetch.archives import read_tar_member, read_zip_member
from eagleray.io.fetch.locate import Locator, may_read
from eagleray.io.fetch.parquet import CellReader
from eagleray.io.fetch.source import (
    ImageSource,
    cell_column,
    describe_inline_image,
    packing_of,
)
from eagleray.io.storage import PathPolicy

if TYPE_CHECKING:
    from eagleray.io.http import UrlPolicy

__all__ = ["ImageReader", "fetch_image"]

_MAX_OPEN_TABLES = 4
_HTTP = ("http", "https")
_ANY = PathPolicy()


class ImageReader:
    """Reads images from files, archives, tables and http(s) addresses; thread-safe.

    Args:
        max_bytes: Maximum size of an encoded image.
        url_policy: Which http(s) addresses may be fetched; None for none.
        path_policy: Which other locations may be read.
    """

    def __init__(
        self,
        max_bytes: int,
        url_policy: UrlPolicy | None = None,
        path_policy: PathPolicy = _ANY,
    ) -> None:
        self._max_bytes = max_bytes
        self._url_policy = url_policy
        self._path_policy = path_policy
        self._locator = Locator(path_policy)
        self._tables: OrderedDict[tuple[str, str, str], CellReader] = OrderedDict()
        self._opening = threading.Lock()

    def read(self, source: ImageSource) -> bytes:
        """Read an encoded image.

        Returns:
            Its bytes; of a plain file at most one more than allowed, so that the decoder sees that
            there are too many.

        Raises:
            BadImageError: With reason `missing`, `unreadable` or `too_many_bytes`. No other
                exception is raised.
        """
        try:
            return self._read(source)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise BadImageError(Reason.MISSING, _missing(source)) from error
        except InputError as error:
            raise BadImageError(Reason.UNREADABLE, str(error)) from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise BadImageError(Reason.MISSING, _missing(source)) from error
            text = error.strerror or str(error)
            raise BadImageError(Reason.UNREADABLE, f"storage error: {text}") from error

    def _read(self, source: ImageSource) -> bytes:
        # Checked here as well as when inputs are listed: a stored list or a link in a folder may
        # have been changed in between.
        if not may_read(source, self._path_policy):
            self._refuse_location(source)
        if source.packing is None and packing_of(source.uri) is not None:
            source, _ = self._locator.find(source.uri)
        if source.size is not None and source.size > self._max_bytes:
            self._refuse_size(source.size)
        if source.packing is None:
            return self._read_file(source.uri)
        if source.offset is None:
            raise BadImageError(
                Reason.MISSING,
                "the archive has no data for it: a link, or a sparse file",
            )
        assert source.container is not None
        if source.packing == "parquet":
            return self._read_cell(source, source.container, source.offset)
        read_member = read_tar_member if source.packing == "tar" else read_zip_member
        assert source.size is not None
        return read_member(source.container, source.offset, source.size)

    def _read_file(self, uri: str) -> bytes:
        if not uri:
            raise BadImageError(Reason.MISSING, "the table has no location in this row")
        limit = self._max_bytes + 1
        if self._url_policy is not None and uri.partition("://")[0].lower() in _HTTP:
            from eagleray.io.http import fetch_url

            return fetch_url(uri, self._url_policy, limit=limit)
        return storage.read_bytes(uri, limit=limit)

    def _read_cell(self, source: ImageSource, container: str, row: int) -> bytes:
        data = self._table(container, cell_column(source)).read(row)
        if data is None:
            raise BadImageError(Reason.MISSING, "the cell is empty")
        if len(data) > self._max_bytes:
            self._refuse_size(len(data))
        return data

    def _table(self, container: str, column: str) -> CellReader:
        key = (container, column, storage.file_info(container).version)
        with self._opening:
            if key not in self._tables:
                self._tables[key] = CellReader(container, column)
            self._tables.move_to_end(key)
            if len(self._tables) > _MAX_OPEN_TABLES:
                self._tables.popitem(last=False)
            return self._tables[key]

    def _refuse_location(self, source: ImageSource) -> None:
        """Raise the same error whether or not the file exists, which must not be revealed."""
        inline = source.packing is None and describe_inline_image(source.uri) is not None
        if inline:
            raise BadImageError(Reason.MISSING, _missing(source))
        raise BadImageError(Reason.UNREADABLE, "this job may not read that location")

    def _refuse_size(self, size: int) -> None:
        raise BadImageError(
            Reason.TOO_MANY_BYTES,
            f"the file has {size:,} bytes, the limit is {self._max_bytes:,}",
        )


def _missing(source: ImageSource) -> str:
    inline = describe_inline_image(source.uri)
    if inline is not None:
        return f"the table contains {inline} instead of a location"
    if packing_of(source.uri) is None:
        return "there is no file at this location"
    return "there is no such archive or table, or no such image in it"


@functools.lru_cache(maxsize=4)
def _reader(max_bytes: int) -> ImageReader:
    return ImageReader(max_bytes)


def fetch_image(source: str | ImageSource, contract: ImageContract) -> bytes:
    """Read one encoded image, by its source or its URI.

    Raises:
        BadImageError: `missing`, `unreadable` or `too_many_bytes`.
    """
    if isinstance(source, str):
        source = ImageSource(source)
    return _reader(contract.max_bytes).read(source)
