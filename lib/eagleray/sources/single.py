"""Sources of one image: a file, an image inside an archive or a table, an http(s) address."""

from __future__ import annotations

from eagleray.core.errors import InputError
from eagleray.io.fetch import ImageSource
from eagleray.io.fetch.locate import Locator
from eagleray.io.fetch.source import packing_of
from eagleray.io.tables import TABLE_EXTENSIONS
from eagleray.sources.archives import ARCHIVES
from eagleray.sources.listing import (
    InputSpec,
    OpenedSource,
    describe_file,
    listing_of_sources,
    require_file,
)
from eagleray.sources.skipped import SkippedFiles
from eagleray.sources.source import Source
from eagleray.sources.tables import list_locations
from eagleray.sources.unsupported import (
    is_unread_name,
    refuse_unread_content,
    refuse_unread_name,
)

__all__ = ["ADDRESS", "IMAGE", "PACKED_IMAGE"]

_FETCHED = ("http://", "https://")


def _open_image(location: str, _spec: InputSpec, _skipped: SkippedFiles) -> OpenedSource:
    require_file(location)
    refuse_unread_name(location)
    info = describe_file(location)
    refuse_unread_content(location)
    return OpenedSource.single(
        listing_of_sources([ImageSource(info.uri, info.size)], [info.version])
    )


def _open_packed(location: str, spec: InputSpec, _skipped: SkippedFiles) -> OpenedSource:
    return OpenedSource.single(list_locations([location], locator=Locator(spec.policy)))


def _open_address(location: str, _spec: InputSpec, _skipped: SkippedFiles) -> OpenedSource:
    """Take an address for an image; whether it may be fetched is decided when it is read."""
    path = location.lower().partition("?")[0]
    if path.endswith((*TABLE_EXTENSIONS, *ARCHIVES)) or is_unread_name(path):
        raise InputError(
            f"{location} is not read from the net: only images are; download it, and name the file."
        )
    return OpenedSource.single(list_locations([location]))


IMAGE = Source("image", lambda _: True, _open_image)
PACKED_IMAGE = Source("packed", lambda location: packing_of(location) is not None, _open_packed)
ADDRESS = Source("address", lambda location: location.lower().startswith(_FETCHED), _open_address)
