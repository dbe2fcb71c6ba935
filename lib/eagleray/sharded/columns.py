"""The columns of a manifest: the place of an image, and the user's own columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from eagleray.io.fetch import ImageSource

__all__ = ["USER_PREFIX", "image_sources", "names_beside_ours", "user_columns"]

USER_PREFIX = "user:"
"""Prefix of the user's own columns, which keeps them apart from ours."""


def image_sources(rows: pa.Table) -> list[ImageSource]:
    """Return the place of each row's image."""
    names = ("uri", "size", "packing", "container", "offset")
    columns = [rows.column(name).to_pylist() for name in names]
    return [
        ImageSource(uri=uri, size=size, packing=packing, container=container, offset=offset)
        for uri, size, packing, container, offset in zip(*columns, strict=True)
    ]


def user_columns(manifest_schema: pa.Schema) -> pa.Schema:
    """Return the user's own columns of a manifest, under their own names."""
    return pa.schema(
        field.with_name(field.name.removeprefix(USER_PREFIX))
        for field in manifest_schema
        if field.name.startswith(USER_PREFIX)
    )


def names_beside_ours(names: Sequence[str], is_ours: Callable[[str], bool]) -> list[str]:
    """Return the names of the user's columns in a table that has columns of ours as well.

    A user's column with the name of one of ours gets the prefix `input_`, and a number at the end
    if the user has a column of that name too, as in results that are inputs again.

    Args:
        names: Names of the user's columns.
        is_ours: Whether a name is that of a column of ours.
    """
    taken = {name for name in names if not is_ours(name)}
    free = []
    for name in names:
        chosen = f"input_{name}" if is_ours(name) else name
        number = 2
        while is_ours(name) and chosen in taken:
            chosen, number = f"input_{name}_{number}", number + 1
        taken.add(chosen)
        free.append(chosen)
    return free
