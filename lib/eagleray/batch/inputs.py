"""Lists the inputs of a prediction job, and checks that they have what the model needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from eagleray.batch.earlier import failures_of, skip_known
from eagleray.core.errors import InputError
from eagleray.io.tables import texts_of
from eagleray.models.attributes import Attribute, encode_columns, require_columns
from eagleray.sources import (
    LISTING_SCHEMA,
    InputSpec,
    Listing,
    open_inputs,
    require_readable,
    restrict_listing,
)

__all__ = ["list_inputs"]


def list_inputs(
    spec: InputSpec,
    *,
    since: Sequence[str] = (),
    failed_of: str | None = None,
    attributes: Sequence[Attribute] = (),
) -> Listing:
    """Open the inputs of a job; they are listed as the listing's tables are read.

    Args:
        spec: Locations of the inputs; none with `failed_of`.
        since: Outputs of earlier jobs whose inputs are skipped.
        failed_of: Output of an earlier job whose failures are the inputs.
        attributes: Attributes that the model takes from the inputs' columns.

    Raises:
        InputError: If a location cannot be read, or a column is missing.
    """
    policy = spec.policy
    earlier = [*since, *filter(None, [failed_of])]
    require_readable([*spec.locations, *earlier], policy)
    listing = (
        open_inputs(spec) if failed_of is None else restrict_listing(failures_of(failed_of), policy)
    )
    if since:
        listing = replace(listing, tables=skip_known(listing.tables, since))
    return _with_attributes(listing, attributes) if attributes else listing


def _with_attributes(listing: Listing, attributes: Sequence[Attribute]) -> Listing:
    """Check the columns of attributes at once, and their values as the list is read."""
    names = listing.user_schema.names
    require_columns([attribute.name for attribute in attributes], names, "The list of inputs")

    def tables() -> Iterator[pa.Table]:
        for table in listing.tables:
            own = dict(zip(names, table.columns[len(LISTING_SCHEMA) :], strict=True))
            try:
                columns = {one.name: texts_of(own[one.name]) for one in attributes}
            except pa.ArrowException as error:
                raise InputError(
                    f"A column that the model takes cannot be read as text ({error})."
                ) from None
            encode_columns(attributes, columns, table.column(0).to_pylist())
            yield table

    return replace(listing, tables=tables())
