"""Whatever a user names as a job's inputs, as one stream of Arrow tables."""

from eagleray.batch.inputs.bounds import keep_within, require_readable
from eagleray.batch.inputs.listing import LISTING_SCHEMA, InputSpec, Listing
from eagleray.batch.inputs.opening import open_inputs

__all__ = [
    "LISTING_SCHEMA",
    "InputSpec",
    "Listing",
    "keep_within",
    "open_inputs",
    "require_readable",
]
