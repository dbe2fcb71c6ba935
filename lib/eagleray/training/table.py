"""Labelled images: where they are, what they show, and which part of the data they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

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
    "Split",
    "read_labelled",
    "require_enough",
    "split_images",
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
    """

    uris: tuple[str, ...]
    texts: tuple[str, ...]
    versions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def digest(self) -> str:
        """SHA-256 over locations, versions and labels."""
        return digest_table([self.uris, self.versions, self.texts])

    def take(self, indices: Sequence[int]) -> LabelledImages:
        """Return some of the rows."""
        return LabelledImages(
            tuple(self.uris[index] for index in indices),
            tuple(self.texts[index] for index in indices),
            tuple(self.versions[index] for index in indices),
        )


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of the data: `train` is learned, `validation` chooses, `test` is used once."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


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


def split_images(
    images: LabelledImages,
    *,
    stratify: bool,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> Split:
    """Split the data once, reproducibly.

    Args:
        images: All rows.
        stratify: Give every class the same share of each part (at least one image).
        validation_fraction: Of all rows.
        test_fraction: Of all rows; 0 when there is a test set of its own.
        seed: The same seed and data give the same split.
    """
    generator = np.random.default_rng(seed)
    keys: Sequence[str] = images.texts if stratify else [""] * len(images)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for key in sorted(groups):
        order = generator.permutation(groups[key]).tolist()
        num_test = _share(len(order), test_fraction)
        num_validation = _share(len(order), validation_fraction)
        parts[2].extend(order[:num_test])
        parts[1].extend(order[num_test : num_test + num_validation])
        parts[0].extend(order[num_test + num_validation :])
    train, validation, test = (images.take(sorted(part)) for part in parts)
    return Split(train, validation, test)


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0
