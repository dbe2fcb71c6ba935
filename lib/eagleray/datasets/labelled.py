"""Labelled images: where they are, what they show, and what else a table says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from eagleray import storage
from eagleray.errors import InputError
from eagleray.models.tasks import TaskName
from eagleray.tables import (
    URI_COLUMNS,
    digest_table,
    read_csv_table,
    require_column,
    resolve_beside,
)

__all__ = [
    "LABEL_COLUMNS",
    "LabelledImages",
    "read_labelled",
    "require_enough",
]

LABEL_COLUMNS = ("label", "labels", "class", "target")
"""Column names that hold the label when the user names none, best first."""

_LEAST_PER_CLASS = 3  # one each for training, validation and test


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
        """SHA-256 over locations, versions, labels and attributes."""
        attributes = [
            [(name, value) for value in values] for name, values in sorted(self.attributes.items())
        ]
        return digest_table([self.uris, self.versions, self.texts, *attributes])

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


def read_labelled(
    location: str, *, uri_column: str | None = None, label_column: str | None = None
) -> LabelledImages:
    """Read an image-folder tree (one folder for each class) or a CSV of paths and labels.

    Args:
        location: A folder or a `.csv`; local or any URI that fsspec opens.
        uri_column: CSV column of the locations; None looks for the usual names.
        label_column: CSV column of the labels; None looks for the usual names.

    Raises:
        InputError: It is not there, is empty, or has no labels.
    """
    if location.lower().endswith(".csv") and not storage.is_folder(location):
        return _read_csv(location, uri_column, label_column)
    if not storage.is_folder(location):
        raise InputError(f"There is no folder or CSV {location}; check the path.")
    return _read_tree(location)


def _read_csv(location: str, uri_column: str | None, label_column: str | None) -> LabelledImages:
    table = read_csv_table(location)
    uris = require_column(table, uri_column, URI_COLUMNS, location, flag="--column")
    labels = require_column(table, label_column, LABEL_COLUMNS, location, flag="--label-column")
    files = [
        storage.file_info(resolve_beside(location, name)) for name in table.column(uris).to_pylist()
    ]
    return LabelledImages(
        uris=tuple(file.uri for file in files),
        texts=tuple(table.column(labels).to_pylist()),
        versions=tuple(file.version for file in files),
    )


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
                "a folder named after its class, or use a CSV of paths and labels."
            )
        rows.append((file.uri, parts[0], file.version))
    if not rows:
        raise InputError(f"Folder {location} holds no images in class folders.")
    uris, texts, versions = zip(*rows, strict=True)
    return LabelledImages(uris, texts, versions)


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
