"""Whatever a user names as a job's inputs, as one stream of Arrow tables."""

from eagleray.sources.listing import LISTING_SCHEMA, InputSpec, Listing
from eagleray.sources.path_policy import require_readable, restrict_listing
from eagleray.sources.prepare import open_inputs

__all__ = [
    "LISTING_SCHEMA",
    "InputSpec",
    "Listing",
    "open_inputs",
    "require_readable",
    "restrict_listing",
]
