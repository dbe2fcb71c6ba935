"""Keeps a split in a Parquet file, and divides data again as the file says.

write_split(split, "split.parquet", data_digest=images.digest, seed=0, attributes=["age"])
split = read_split("split.parquet", images)
test = read_named_split("split.parquet", "test")
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError
from eagleray.data.labelled import LabelledImages
from eagleray.data.split import SPLIT_NAMES, Split
from eagleray.io import storage
from eagleray.io.parquet_table import open_parquet
from eagleray.sources import require_readable

__all__ = [
    "SPLIT_SCHEMA",
    "is_split_file",
    "read_named_split",
    "read_split",
    "take_named_split",
    "write_split",
]

SPLIT_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("uri", "version", "label", "split")]
)
"""Columns of a split file, beside a text column `attribute_NAME` for each attribute that it keeps.
Its key-value metadata hold the format, the seed and the digests."""

_ANY = storage.PathPolicy()
_ATTRIBUTE_PREFIX = "attribute_"
_FORMAT = "eagleray-split/2"
_SPLIT_COLUMNS = {"eagleray-split/1": "part", _FORMAT: "split"}


def write_split(
    split: Split,
    location: str,
    *,
    data_digest: str | None = None,
    seed: int | None = None,
    attributes: Sequence[str] = (),
) -> None:
    """Write which image is in which split as one new Parquet file.

    Args:
        split: The divided data.
        location: Location of the file.
        data_digest: Digest of the rows before they were divided.
        seed: Seed that the split was made with, if there was one.
        attributes: Names of the attributes to keep beside the labels, which the data must have.

    Raises:
        OutputExistsError: If there is a file already.
        InputError: If it cannot be written.
    """
    splits = split.by_name
    columns = {
        "uri": [uri for images in splits.values() for uri in images.uris],
        "version": [version for images in splits.values() for version in images.versions],
        "label": [label for images in splits.values() for label in images.labels],
        "split": [name for name, images in splits.items() for _ in images.uris],
    }
    known = {"data_digest": data_digest, "seed": None if seed is None else str(seed)}
    metadata = {
        "format": _FORMAT,
        "split_digest": split.digest,
        **{f"{name}_digest": images.digest for name, images in splits.items()},
        **{name: value for name, value in known.items() if value is not None},
    }
    table = pa.table(columns, schema=SPLIT_SCHEMA).replace_schema_metadata(metadata)
    for name in attributes:
        values = [value for images in splits.values() for value in images.attributes[name]]
        table = table.append_column(_ATTRIBUTE_PREFIX + name, pa.array(values, pa.string()))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    try:
        is_new = storage.put_if_absent(location, buffer.getvalue())
    except OSError as error:
        raise InputError(
            f"The split cannot be written to {location} ({error.strerror or error})."
        ) from error
    if not is_new:
        raise OutputExistsError(
            f"{location} is there already, and a split is kept; name another file."
        )


def read_split(location: str, images: LabelledImages) -> Split:
    """Divide the data as a split file says.

    Rows are identified by location and label. Attributes may have changed since it was written;
    contents must not, as far as versions tell.

    Args:
        location: Location of a file that `write_split` made.
        images: All rows, in any order.

    Raises:
        InputError: If it is not a split file, or is of other rows; the message says what differs.
    """
    table = _read_split_table(location)
    _require_same_rows(location, table, images)
    split_of = dict(zip(table["uri"], table["split"], strict=True))
    rows: dict[str, list[int]] = {name: [] for name in SPLIT_NAMES}
    for row, uri in enumerate(images.uris):
        rows[split_of[uri]].append(row)
    return Split(*(images.take(rows[name]) for name in SPLIT_NAMES))


def read_named_split(
    location: str, name: str, *, policy: storage.PathPolicy = _ANY
) -> LabelledImages:
    """Read one split of a split file, as it was when the file was written, with its attributes.

    Args:
        location: Location of a file that `write_split` made.
        name: `train`, `validation` or `test`.
        policy: Which locations may be read, also of the images.

    Raises:
        InputError: If it is not a split file, the split has no images, or one may not be read.
        UnknownNameError: If there is no such split.
    """
    table = _read_split_table(location)
    rows = _rows_of_split(table["split"], name, location)
    columns = {column: tuple(values[row] for row in rows) for column, values in table.items()}
    require_readable(columns["uri"], policy)
    attributes = {
        column.removeprefix(_ATTRIBUTE_PREFIX): values
        for column, values in columns.items()
        if column.startswith(_ATTRIBUTE_PREFIX)
    }
    return LabelledImages(columns["uri"], columns["label"], columns["version"], attributes)


def take_named_split(images: LabelledImages, name: str, where: str) -> LabelledImages:
    """Return one of the splits that data have of their own.

    Raises:
        InputError: If they have none, or the split has no images.
        UnknownNameError: If there is no such split.
    """
    return replace(images.take(_rows_of_split(images.splits, name, where)), notes=images.notes)


def _rows_of_split(splits: Sequence[str], name: str, where: str) -> list[int]:
    """Return the rows of one split, of which there is at least one.

    Raises:
        InputError: If there is none.
        UnknownNameError: If no split can have the name. Both messages list the splits there are.
    """
    there = [one for one in SPLIT_NAMES if one in splits]
    if name not in SPLIT_NAMES:
        hint = f"{where} has {_listed(there)}."
        raise UnknownNameError("split", name, SPLIT_NAMES, hint=hint)
    rows = [row for row, split in enumerate(splits) if split == name]
    if not rows:
        raise InputError(f"{where} has no {name} split: it has {_listed(there)}.")
    return rows


def _listed(splits: Sequence[str]) -> str:
    *first, last = splits or ("no splits",)
    return f"{', '.join(first)} and {last}" if first else last


def is_split_file(location: str) -> bool:
    """Whether a file was written by `write_split`."""
    try:
        with open_parquet(location) as file:
            return _split_column(file.schema_arrow) is not None
    except (InputError, OSError, pa.ArrowException):
        return False


def _split_column(schema: pa.Schema) -> str | None:
    """Return the column that names the split of a row; None if it is not a split file."""
    metadata = schema.metadata or {}
    return _SPLIT_COLUMNS.get(metadata.get(b"format", b"").decode(errors="replace"))


def _read_split_table(location: str) -> dict[str, list[str]]:
    try:
        with open_parquet(location) as file:
            column = _split_column(file.schema_arrow)
            if column is None:
                raise InputError(f"{location} is not a split file of Eagleray ({_FORMAT}).")
            kept = [name for name in file.schema_arrow.names if name.startswith(_ATTRIBUTE_PREFIX)]
            names = [*SPLIT_SCHEMA.names[:-1], column, *kept]
            columns = file.read(names).to_pydict().values()
            keys = [*SPLIT_SCHEMA.names, *kept]
            table: dict[str, list[str]] = dict(zip(keys, columns, strict=True))
    except FileNotFoundError:
        raise InputError(f"There is no split file {location}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{location} is a damaged split file ({error}); copy it again.") from None
    placed = set(zip(table["uri"], table["split"], strict=True))
    if len(placed) > len(set(table["uri"])):
        uri = next(uri for uri, count in Counter(uri for uri, _ in placed).items() if count > 1)
        raise InputError(f"The split {location} has {uri} in more than one split.")
    unknown = sorted({name for _, name in placed} - set(SPLIT_NAMES))
    if unknown:
        raise InputError(f"The split {location} has an unknown split {unknown[0]!r}.")
    return table


def _require_same_rows(location: str, table: dict[str, list[str]], images: LabelledImages) -> None:
    written = _labels_by_uri(table["uri"], table["label"])
    labels = _labels_by_uri(images.uris, images.labels)
    versions = dict(zip(table["uri"], table["version"], strict=True))
    common = [uri for uri in written if uri in labels]
    now = dict(zip(images.uris, images.versions, strict=True))
    differences = {
        "gone": [uri for uri in written if uri not in labels],
        "new": [uri for uri in labels if uri not in written],
        "relabelled": [uri for uri in common if written[uri] != labels[uri]],
        "changed": [
            uri for uri in common if versions[uri] and now[uri] and versions[uri] != now[uri]
        ],
    }
    differing = [
        f"{len(uris):,} {what}, {'first' if len(uris) > 1 else 'namely'} {uris[0]}"
        for what, uris in differences.items()
        if uris
    ]
    if differing:
        raise InputError(
            f"The split {location} is of other data ({'; '.join(differing)}); write a new "
            "split, or go back to the data that it was made of."
        )


def _labels_by_uri(uris: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for uri, label in sorted(zip(uris, labels, strict=True)):
        found.setdefault(uri, []).append(label)
    return found
