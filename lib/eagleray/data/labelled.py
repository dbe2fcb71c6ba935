"""Reads labelled images from any source of inputs: their locations, labels and attributes.

    flowers/rose/1.jpg      a folder, a pattern or an archive: the first folder is the label
    path,label,camera       a table, or a folder of tables: a column of images or their locations,
    a.jpg,rose,north        and one of labels; the others are attributes
    cells/images/1.jpg      for tasks that say where things are: a label format such as COCO,
    cells/labels/1.txt      which becomes the JSON of `tasks.annotation`; a table may have that too

Labels stay the text that was written, trimmed: a class, `a|b` where several hold, or a number.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.data.annotations.reading import (
    LABEL_FORMATS,
    read_annotations,
    recognise_format,
)
from eagleray.data.class_folders import read_class_folders
from eagleray.data.label_columns import LabelColumns
from eagleray.data.label_format import MAX_INVALID
from eagleray.data.label_texts import look_alike
from eagleray.io import storage
from eagleray.io.read_ahead import read_ahead
from eagleray.io.tables import digest_table
from eagleray.sources import LISTING_SCHEMA, InputSpec, open_inputs
from eagleray.tasks import Task, task_class

__all__ = [
    "LabelledImages",
    "encode_labels",
    "join_images",
    "read_labelled",
    "read_objects",
    "require_enough",
]

_MIN_PER_CLASS = 3  # one each for training, validation and test
_REQUESTS = 32
_FORMAT_FOLDERS = frozenset(
    ("images", "jpegimages", "labels", "annotations", "masks", "instances")
)  # which label formats have
_NUM_OURS = len(LISTING_SCHEMA)
_ANY = storage.PathPolicy()


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with their labels.

    Attributes:
        uris: Locations of the images.
        labels: Labels as written; for multilabel `a|b`, for regression a number.
        versions: Version of each image, which changes with its content; empty if not known.
        attributes: The table's other columns by name, as text; empty for a missing value.
        splits: `train`, `validation` or `test` for each image; empty if the data do not say.
        notes: Sentences on how they were read, and what was skipped.
        rows: Row of each image in its table, counted from 1 without the header; empty if the images
            are not of a table.
    """

    uris: tuple[str, ...]
    labels: tuple[str, ...]
    versions: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.uris)

    def place(self, index: int) -> str:
        """Return where an image comes from, for messages: its row if it has one, and location."""
        uri = self.uris[index] or "no location"
        return f"row {self.rows[index]:,}, {uri}" if self.rows else uri

    @property
    def places(self) -> tuple[str, ...]:
        """Where each image comes from, as `place` says."""
        return tuple(map(self.place, range(len(self))))

    @property
    def digest(self) -> str:
        """SHA-256 over locations, versions and labels."""
        return digest_table([self.uris, self.versions, self.labels])

    def take(self, indices: Sequence[int]) -> LabelledImages:
        """Return some of the rows, without their splits."""
        return LabelledImages(
            tuple(self.uris[index] for index in indices),
            tuple(self.labels[index] for index in indices),
            tuple(self.versions[index] for index in indices),
            {
                name: tuple(values[index] for index in indices)
                for name, values in self.attributes.items()
            },
            rows=tuple(self.rows[index] for index in indices) if self.rows else (),
        )


def join_images(*sets: LabelledImages) -> LabelledImages:
    """Return the rows of all, without their splits; an attribute that some lack is "" there."""
    names = sorted({name for some in sets for name in some.attributes})

    def joined(columns: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(columns))

    return LabelledImages(
        joined(some.uris for some in sets),
        joined(some.labels for some in sets),
        joined(some.versions for some in sets),
        {
            name: joined(some.attributes.get(name, ("",) * len(some)) for some in sets)
            for name in names
        },
        notes=tuple(dict.fromkeys(joined(some.notes for some in sets))),
        rows=tuple(itertools.chain.from_iterable(some.rows for some in sets))
        if all(some.rows for some in sets)
        else (),
    )


def read_labelled(
    location: str,
    *,
    uri_column: str | None = None,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    separator: str | None = None,
    task: str | None = None,
    policy: storage.PathPolicy = _ANY,
    max_invalid: float = MAX_INVALID,
) -> LabelledImages:
    """Read labelled images from any source of inputs.

    Tables have their labels in columns; images of other sources are labelled by their folders. An
    image that a table names need not be there: it has no version, and reading it fails.

    Args:
        location: A folder, a pattern, an archive, a table or a folder of tables.
        uri_column: Table column of the locations or the images; None looks for the usual names.
        label_column: Table column of the labels; None looks for the usual names.
        label_columns: Columns of 0 and 1 instead, each named after the label that holds where it
            is 1.
        separator: Text between several labels in the label column, if not `|`.
        task: Name of the task to read labels for; None for any. Only some tasks, such as
            `multilabel`, have several labels of an image.
        policy: Which locations may be read, also of those that a table names.
        max_invalid: Share of invalid objects, and of invalid images, that is left out of a label
            format; more are refused.

    Raises:
        InputError: If it is not there, is empty, has no labels, or may not be read.
    """
    if label_columns and (label_column or separator):
        raise InputError(
            "Labels are in one column (--label-column, --separator) or in a column of 0 and 1 for "
            "each (--label-columns); name one kind of the two."
        )
    if task is not None and task_class(task).label_kind == "objects":
        if label_columns or separator:
            raise InputError(
                f"The labels of a {task} task are objects; leave out --label-columns and "
                "--separator, which are for labels of whole images."
            )
        return read_objects(
            location,
            uri_column=uri_column,
            label_column=label_column,
            policy=policy,
            max_invalid=max_invalid,
        )
    return _read_texts(
        location, uri_column, label_column, tuple(label_columns), separator, task, policy
    )


def read_objects(
    location: str,
    *,
    uri_column: str | None = None,
    label_column: str | None = None,
    policy: storage.PathPolicy = _ANY,
    max_invalid: float = MAX_INVALID,
) -> LabelledImages:
    """Read images whose labels are the objects in them, as the JSON of `tasks.annotation`.

    Args:
        location: A folder with a label format, a file of COCO's JSON, or a table whose column of
            labels has the JSON already.
        uri_column: Table column of the locations or the images.
        label_column: Table column of the labels.
        policy: Which locations may be read.
        max_invalid: Share of invalid objects, and of invalid images, that is left out of a label
            format; more are refused.

    Raises:
        InputError: If it is not there, has no labels of a known format, or may not be read.
    """
    found = read_annotations(location, policy=policy, max_invalid=max_invalid)
    if found is None:
        if not _is_table(location, uri_column, policy):
            raise InputError(
                f"{location} has no labels of objects: it is neither a table nor a folder in one "
                f"of the formats {', '.join(LABEL_FORMATS)}; docs/detection.md shows their layouts."
            )
        return _read_texts(location, uri_column, label_column, (), None, None, policy)
    if uri_column or label_column:
        raise InputError(
            f"{location} is not a table but has a label format; columns are for tables."
        )
    return LabelledImages(
        uris=tuple(one.image.uri for one in found.images),
        labels=tuple(one.annotation.to_text() for one in found.images),
        versions=tuple(one.image.version for one in found.images),
        splits=found.splits,
        notes=found.notes,
    )


def _refuse_objects(location: str, policy: storage.PathPolicy) -> None:
    """Refuse a folder in a label format, whose folders of images and labels would be classes.

    Raises:
        InputError: If it is one.
    """
    known = recognise_format(location, policy) if storage.is_folder(location) else None
    if known is not None:
        raise InputError(
            f"{location} has labels of objects ({known}); they are for tasks such as detection and "
            "semantic, or for models of such a task."
        )


def _is_table(location: str, uri_column: str | None, policy: storage.PathPolicy) -> bool:
    return open_inputs(InputSpec((location,), uri_column, policy, unpack=False)).root is None


def _read_texts(
    location: str,
    uri_column: str | None,
    label_column: str | None,
    label_columns: Sequence[str],
    separator: str | None,
    task: str | None,
    policy: storage.PathPolicy,
) -> LabelledImages:
    listing = open_inputs(InputSpec((location,), uri_column, policy, unpack=False))
    if listing.root is not None and (uri_column or label_column or label_columns or separator):
        raise InputError(
            f"{location} is not a table: the names of its folders are the labels; columns and "
            "separators are for tables."
        )
    rows = pa.concat_tables(listing.tables)
    ours, user = rows.select(range(_NUM_OURS)), rows.select(range(_NUM_OURS, rows.num_columns))
    if listing.root is not None:
        try:
            found = read_class_folders(location, listing.root, ours)
        except InputError:
            _refuse_objects(location, policy)
            raise
        if {label.casefold() for label in found.labels} <= _FORMAT_FOLDERS:
            _refuse_objects(location, policy)
    else:
        uris = ours.column("uri").to_pylist()
        columns = LabelColumns(location, uris, user, listing.byte_columns, task)
        found = columns.read(label_column, label_columns, separator)
    labelled = ours.take(found.rows)
    return LabelledImages(
        uris=tuple(labelled.column("uri").to_pylist()),
        labels=found.labels,
        versions=_versions(labelled),
        attributes=found.attributes,
        splits=found.splits,
        notes=(*found.notes, *listing.all_notes()),
        rows=() if listing.root is not None else tuple(row + 1 for row in found.rows),
    )


def _versions(rows: pa.Table) -> tuple[str, ...]:
    """Return every image's version; remote files that a table names cost a request each."""
    uris, versions = rows.column("uri").to_pylist(), rows.column("version").to_pylist()
    packed = rows.column("packing").is_valid().to_pylist()
    unknown = list(
        dict.fromkeys(
            uri
            for uri, version, is_packed in zip(uris, versions, packed, strict=True)
            if not version and not is_packed and storage.is_remote(uri)
        )
    )
    answers = read_ahead(storage.version_of, unknown, threads=_REQUESTS, max_ahead=2 * _REQUESTS)
    found = dict(zip(unknown, answers, strict=True))
    return tuple(version or found.get(uri, "") for uri, version in zip(uris, versions, strict=True))


# --- labels and tasks ---------------------------------------------------------------------------


def encode_labels(task: Task, images: LabelledImages) -> list[Any]:
    """Return all labels as targets.

    Raises:
        InputError: If a label is not one of the task's; the message names a similar one.
    """
    encoded = []
    for index, text in enumerate(images.labels):
        try:
            encoded.append(task.encode(text))
        except InputError as error:
            known = look_alike(text, task.labels)
            meant = "" if known is None else f" It has {known!r}: write the label as that."
            raise InputError(
                f"The label of {images.place(index)} does not fit the model: {error}{meant}"
            ) from None
    return encoded


def require_enough(images: LabelledImages, task: str, where: str) -> None:
    """Refuse data with a class that is too small to be in every split, or with one class.

    Raises:
        InputError: If there is such a class; the message names it.
    """
    if task_class(task).label_coverage == "all":
        _require_classes(images, where)
        counts = Counter(images.labels)
        for label, count in sorted(counts.items()):
            if count < _MIN_PER_CLASS:
                plural = "image" if count == 1 else "images"
                other = look_alike(label, sorted(counts))
                meant = "" if other is None else f" It may be {other!r}, written otherwise."
                first = images.place(images.labels.index(label))
                place = first if count == 1 else f"the first is {first}"
                raise InputError(
                    f"Class {label!r} of {where} has {count} {plural} ({place}); at least "
                    f"{_MIN_PER_CLASS} are needed, one each for training, validation and test. "
                    f"Add images or remove the class.{meant}"
                )
    elif len(images) < _MIN_PER_CLASS:
        raise InputError(f"{where} has {len(images)} images; at least {_MIN_PER_CLASS} are needed.")


def _require_classes(images: LabelledImages, where: str) -> None:
    """Refuse an empty label, and a folder whose only folder holds the class folders."""
    if "" in images.labels:
        place = images.place(images.labels.index(""))
        raise InputError(
            f"A row of {where} ({place}) has an empty label; name its class, or leave the row out."
        )
    if len(set(images.labels)) > 1 or not storage.is_folder(where):
        return
    root = storage.absolute(where).rstrip("/") + "/"
    paths = [uri.removeprefix(root).split("/") for uri in images.uris]
    inner = dict.fromkeys(path[1] for path in paths if len(path) > 2)
    if len(inner) > 1 and all(len(path) > 2 for path in paths):
        folder = f"{where.rstrip('/')}/{paths[0][0]}"
        raise InputError(
            f"{where} has one class only, {images.labels[0]!r}; if the folders in it are meant "
            f"({', '.join(list(inner)[:3])}), name {folder}."
        )
