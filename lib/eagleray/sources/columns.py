"""Finds the column of a table that holds the images or their locations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.io.fetch.parquet import is_image_type
from eagleray.io.tables import URI_COLUMNS, find_usual, require_column

__all__ = ["ImageColumn", "find_image_column", "require_image_column"]

_IMAGE_COLUMNS = (
    *("image", "images", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "tif", "tiff"),
    *("image_bytes", "img_bytes", "image_data", "bytes", "content", "data", "binary"),
)
"""Names of columns that hold images when the user names none, best first."""


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The column that inputs come from.

    Attributes:
        name: Name of the column.
        holds_images: Whether its cells are encoded images; otherwise they are locations.
        note: The other columns that it could have been, as a clause for the user; None without any.
    """

    name: str
    holds_images: bool
    note: str | None = None


def find_image_column(schema: pa.Schema, wanted: str | None, where: str) -> ImageColumn | None:
    """Find the column of images or of locations.

    Without a wanted one that is the first of: a column of bytes with a usual name, a column of
    locations with a usual name, the only column of bytes.

    Args:
        schema: Schema of the table.
        wanted: Name of the column; None looks for it.
        where: Location of the table, for messages.

    Returns:
        The column; None if there is no such column.

    Raises:
        InputError: If several columns are equally likely.
    """
    fields = [field for field in schema if wanted in (None, field.name)]
    images = [field.name for field in fields if is_image_type(field.type)]
    texts = [field.name for field in fields if _is_text(field.type)]
    usual_images = find_usual(images, _IMAGE_COLUMNS)
    usual_texts = find_usual(texts, URI_COLUMNS) if wanted is None else texts
    likely = list(dict.fromkeys((*usual_images, *usual_texts, *images)))
    if not likely:
        return None
    if likely == images and not usual_images and len(images) > 1:
        raise InputError(
            f"{where} has several columns of bytes: {', '.join(images)}; name the one that holds "
            "the images with --column."
        )
    return ImageColumn(likely[0], likely[0] in images, _note(likely, images))


def require_image_column(schema: pa.Schema, wanted: str | None, where: str) -> ImageColumn:
    """Find the column of images or of locations, as `find_image_column` does.

    Raises:
        InputError: If it holds neither, there is none, or several are equally likely.
        UnknownNameError: If there is no such column.
    """
    found = find_image_column(schema, wanted, where)
    if found is not None:
        return found
    name = require_column(schema.empty_table(), wanted, URI_COLUMNS, where, flag="--column")
    raise InputError(
        f"Column {name!r} of {where} holds {schema.field(name).type}, neither locations nor image "
        "bytes; name the right one with --column."
    )


def _note(likely: Sequence[str], images: Sequence[str]) -> str | None:
    name, *others = likely
    if not others:
        return None
    what = "images" if name in images else "locations of the images"
    return (
        f"the {what} are those in column {name!r}, and not in {', '.join(map(repr, others))}; "
        "--column names another"
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_null,
        )
    )
