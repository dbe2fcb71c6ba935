"""Labelled images: where they are, what they show, and what else a table says of them.

    flowers/rose/1.jpg      a tree: the first folder is the label
    path,label,camera       a table (CSV, JSON lines, Parquet): a column of locations and one of
    a.jpg,rose,north        labels; the others are attributes

Labels stay the text that was written: a class, `a|b` where several hold, or a number.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa

from eagleray import storage
from eagleray.errors import InputError
from eagleray.fetch.source import packing_of
from eagleray.models.tasks import LABEL_SEPARATOR, TaskName
from eagleray.tables import (
    TABLE_EXTENSIONS,
    URI_COLUMNS,
    beside,
    digest_table,
    open_table,
    require_column,
    texts_of,
)

__all__ = [
    "LABEL_COLUMNS",
    "LabelledImages",
    "join_images",
    "read_labelled",
    "require_enough",
]

LABEL_COLUMNS = ("label", "labels", "class", "target")
"""Column names that hold the label when the user names none, best first."""

_LEAST_PER_CLASS = 3  # one each for training, validation and test
_QUESTIONS_AT_A_TIME = 32
_HOLDS = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "-0.0", "false"), False),
}


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Rows of a training table.

    Attributes:
        uris: Locations of the images.
        texts: Labels as written; for multilabel `a|b`, for regression a number.
        versions: What changes when an image's content changes; empty where nobody says.
        attributes: The table's other columns by name, as text; empty where a value is missing.
    """

    uris: tuple[str, ...]
    texts: tuple[str, ...]
    versions: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def digest(self) -> str:
        """SHA-256 over locations, versions and labels: what is learned, or measured."""
        return digest_table([self.uris, self.versions, self.texts])

    def take(self, indices: Sequence[int]) -> LabelledImages:
        """Return some of the rows."""
        return LabelledImages(
            tuple(self.uris[index] for index in indices),
            tuple(self.texts[index] for index in indices),
            tuple(self.versions[index] for index in indices),
            {
                name: tuple(values[index] for index in indices)
                for name, values in self.attributes.items()
            },
        )


def join_images(*parts: LabelledImages) -> LabelledImages:
    """Return the rows of all; an attribute that one of them lacks is "" in its rows."""
    names = sorted({name for part in parts for name in part.attributes})

    def joined(columns: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(columns))

    return LabelledImages(
        joined(part.uris for part in parts),
        joined(part.texts for part in parts),
        joined(part.versions for part in parts),
        {
            name: joined(part.attributes.get(name, ("",) * len(part)) for part in parts)
            for name in names
        },
    )


def read_labelled(
    location: str,
    *,
    uri_column: str | None = None,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    separator: str | None = None,
) -> LabelledImages:
    """Read an image-folder tree (one folder for each class) or a table of locations and labels.

    A table's images need not be there: a missing one has no version, and whoever reads it finds
    out.

    Args:
        location: A folder or a table; local or any URI that fsspec opens.
        uri_column: Table column of the locations; None looks for the usual names.
        label_column: Table column of the labels; None looks for the usual names.
        label_columns: Columns of 0 and 1 instead, each named after the label that holds where it
            is 1.
        separator: What stands between several labels in the label column, if not `|`.

    Raises:
        InputError: It is not there, is empty, or has no labels.
    """
    if storage.is_folder(location):
        if uri_column or label_column or label_columns or separator:
            raise InputError(
                f"{location} is a folder, whose labels are the names of its folders; columns and "
                "separators are for tables."
            )
        return _read_tree(location)
    if not location.lower().endswith(TABLE_EXTENSIONS):
        raise InputError(
            f"There is no folder {location}, and tables end in {', '.join(TABLE_EXTENSIONS)}; "
            "check the path."
        )
    if label_columns and (label_column or separator):
        raise InputError(
            "Labels are in one column (--label-column, --separator) or in a column of 0 and 1 for "
            "each (--label-columns); name one kind of the two."
        )
    return _Table(location).read(uri_column, label_column, tuple(label_columns), separator)


# --- tree -------------------------------------------------------------------------------------


def _read_tree(location: str) -> LabelledImages:
    root = storage.absolute(location).rstrip("/") + "/"
    rows = []
    for file in storage.list_files(root):
        parts = PurePosixPath(file.uri.removeprefix(root)).parts
        if any(part.startswith((".", "_")) for part in parts):
            continue
        if len(parts) < 2:
            raise InputError(
                f"{location} holds {parts[0]!r} beside its class folders: every image belongs into "
                "a folder named after its class, or use a table of paths and labels."
            )
        rows.append((file.uri, parts[0], file.version))
    if not rows:
        raise InputError(f"Folder {location} holds no images in class folders.")
    uris, texts, versions = zip(*rows, strict=True)
    return LabelledImages(uris, texts, versions)


# --- table ------------------------------------------------------------------------------------


class _Table:
    """A table read whole, column by column as text; columns of bytes are left out."""

    def __init__(self, location: str) -> None:
        self._location = location
        opened = open_table(location)
        names = [column.name for column in opened.schema if not _holds_bytes(column.type)]
        self._table = pa.concat_tables(opened.read(names))

    def read(
        self,
        uri_column: str | None,
        label_column: str | None,
        label_columns: tuple[str, ...],
        separator: str | None,
    ) -> LabelledImages:
        used = [self._require(uri_column, URI_COLUMNS, "--column")]
        resolve = beside(self._location)
        uris = tuple(
            resolve(name) if name else "" for name in texts_of(self._table.column(used[0]))
        )
        if label_columns:
            used += [self._require(name, (), "--label-columns") for name in label_columns]
            texts = self._read_one_hot(used[1:], uris)
        else:
            used.append(self._require(label_column, LABEL_COLUMNS, "--label-column"))
            texts = self._read_labels(used[1], separator, uris)
        others = [name for name in self._table.column_names if name not in used]
        return LabelledImages(
            uris=uris,
            texts=texts,
            versions=_versions(uris),
            attributes={name: texts_of(self._table.column(name)) for name in others},
        )

    def _require(self, wanted: str | None, usual: Sequence[str], flag: str) -> str:
        return require_column(self._table, wanted, usual, self._location, flag=flag)

    def _read_labels(
        self, column: str, separator: str | None, uris: Sequence[str]
    ) -> tuple[str, ...]:
        values = self._table.column(column)
        if values.null_count:
            row = values.is_null().index(True).as_py()
            raise InputError(
                f"{self._row(row, uris)} has no label in column {column!r}; give it one, or leave "
                "the row out."
            )
        texts = texts_of(values)
        if separator is None:
            return texts
        return tuple(
            self._with_our_separator(text, separator, row, uris) for row, text in enumerate(texts)
        )

    def _with_our_separator(self, text: str, separator: str, row: int, uris: Sequence[str]) -> str:
        parts = [part.strip() for part in text.split(separator)]
        if any(LABEL_SEPARATOR in part for part in parts):
            raise InputError(
                f"{self._row(row, uris)} has the labels {text!r}: with {separator!r} between "
                f"labels, none may contain {LABEL_SEPARATOR!r}."
            )
        return LABEL_SEPARATOR.join(dict.fromkeys(filter(None, parts)))

    def _read_one_hot(self, columns: Sequence[str], uris: Sequence[str]) -> tuple[str, ...]:
        for name in columns:
            if LABEL_SEPARATOR in name:
                raise InputError(
                    f"Column {name!r} of {self._location} cannot name a label: "
                    f"{LABEL_SEPARATOR!r} separates labels; rename it."
                )
        names: list[list[str]] = [[] for _ in uris]
        for name in columns:
            for row, text in enumerate(texts_of(self._table.column(name))):
                holds = _HOLDS.get(text.strip().lower())
                if holds is None:
                    raise InputError(
                        f"{self._row(row, uris)} has {text!r} in column {name!r}, where 0 or 1 "
                        "says whether the label holds."
                    )
                if holds:
                    names[row].append(name)
        return tuple(LABEL_SEPARATOR.join(row) for row in names)

    def _row(self, row: int, uris: Sequence[str]) -> str:
        """Name a row for people: counted from 1, a header not included."""
        return f"Row {row + 1:,} of {self._location} ({uris[row] or 'no location'})"


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes, or have bytes in them as the images of other tools do."""
    if any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary)):
        return True
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _versions(uris: Sequence[str]) -> tuple[str, ...]:
    """Ask for every image's version: remote ones many at a time, as each costs a request."""
    versions = dict.fromkeys(uris, "")
    separate = [uri for uri in versions if uri and packing_of(uri) is None]
    remote = [uri for uri in separate if storage.is_remote(uri)]
    for uri in set(separate) - set(remote):
        versions[uri] = storage.file_info(uri).version
    if remote:
        with ThreadPoolExecutor(_QUESTIONS_AT_A_TIME) as pool:
            versions |= zip(remote, pool.map(storage.version_of, remote), strict=True)
    return tuple(versions[uri] for uri in uris)


# --- enough of them ---------------------------------------------------------------------------


def require_enough(images: LabelledImages, task: TaskName, where: str) -> None:
    """Refuse data with a class so small that it cannot be in every part.

    Raises:
        InputError: Naming the class.
    """
    if task in ("multiclass", "binary"):
        for label, count in sorted(Counter(images.texts).items()):
            if count < _LEAST_PER_CLASS:
                plural = "image" if count == 1 else "images"
                raise InputError(
                    f"Class {label!r} of {where} has {count} {plural}; at least {_LEAST_PER_CLASS} "
                    "are needed, one each for training, validation and test. Add images or remove "
                    "the class."
                )
    elif len(images) < _LEAST_PER_CLASS:
        raise InputError(
            f"{where} has {len(images)} images; at least {_LEAST_PER_CLASS} are needed."
        )
