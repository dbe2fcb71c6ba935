"""Lists the inputs that a user names, of every kind of source, as one stream of Arrow tables."""

from eagleray.sources.archives import ARCHIVE
from eagleray.sources.folders import FOLDER, PATTERN
from eagleray.sources.inputs import open_inputs
from eagleray.sources.listing import LISTING_SCHEMA, InputSpec, Listing, OpenedSource
from eagleray.sources.path_policy import require_readable, restrict_listing
from eagleray.sources.single import ADDRESS, IMAGE, PACKED_IMAGE
from eagleray.sources.skipped import SkippedFiles
from eagleray.sources.source import Source, register_source
from eagleray.sources.tables import TABLE

__all__ = [
    "LISTING_SCHEMA",
    "InputSpec",
    "Listing",
    "OpenedSource",
    "SkippedFiles",
    "Source",
    "open_inputs",
    "register_source",
    "require_readable",
    "restrict_listing",
]

# The last one is asked first.
for _source in (IMAGE, ARCHIVE, TABLE, PATTERN, FOLDER, PACKED_IMAGE, ADDRESS):
    register_source(_source)
