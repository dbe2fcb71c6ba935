"""Labelled images: where they are, what they show, and what else a table says of them.

    flowers/rose/1.jpg      a tree: the first folder is the label
    path,label,camera       a table (CSV, JSON lines, Parquet): a column of locations and one of
    a.jpg,rose,north        labels; the others are attributes

Labels stay the text that was written, trimmed: a class, `a|b` where several hold, or a number.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.data.class_tree import SPLIT_FOLDERS, read_tree
from eagleray.data.label_texts import clean_label, labels_of_list, look_alike, parse_list
from eagleray.io import storage
from eagleray.io.fetch.source import packing_of
from eagleray.io.tables import (
    TABLE_EXTENSIONS,
    URI_COLUMNS,
    beside,
    digest_table,
    open_table,
    require_column,
    texts_of,
)
from eagleray.tasks.tasks import LABEL_SEPARATOR, Task, TaskName

__all__ = [
    "LABEL_COLUMNS",
    "LabelledImages",
    "encode_labels",
    "join_images",
    "read_labelled",
    "require_enough",
]

LABEL_COLUMNS = ("label", "labels", "class", "target")
"""Column names that hold the label when the user names none, best first."""

MULTILABEL_COLUMNS = ("labels", "label", "class", "target")
"""The same where several labels of an image are wanted, as result tables have them."""

_MIN_PER_CLASS = 3  # one each for training, validation and test
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
        labels: Labels as written; for multilabel `a|b`, for regression a number.
        versions: What changes when an image's content changes; empty where nobody says.
        attributes: The table's other columns by name, as text; empty where a value is missing.
        splits: `train`, `validation` or `test` of each, where the data come divided; else empty.
        notes: Sentences on how they were read, and what was skipped.
    """

    uris: tuple[str, ...]
    labels: tuple[str, ...]
    versions: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def digest(self) -> str:
        """SHA-256 over locations, versions and labels: what is learned, or measured."""
        return digest_table([self.uris, self.versions, self.labels])

    def take(self, indices: Sequence[int]) -> LabelledImages:
        """Return some of the rows, as data that are not divided."""
        return LabelledImages(
            tuple(self.uris[index] for index in indices),
            tuple(self.labels[index] for index in indices),
            tuple(self.versions[index] for index in indices),
            {
                name: tuple(values[index] for index in indices)
                for name, values in self.attributes.items()
            },
        )


def join_images(*parts: LabelledImages) -> LabelledImages:
    """Return the rows of all, not divided; an attribute that some lack is "" in their rows."""
    names = sorted({name for part in parts for name in part.attributes})

    def joined(columns: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(columns))

    return LabelledImages(
        joined(part.uris for part in parts),
        joined(part.labels for part in parts),
        joined(part.versions for part in parts),
        {
            name: joined(part.attributes.get(name, ("",) * len(part)) for part in parts)
            for name in names
        },
        notes=tuple(dict.fromkeys(joined(part.notes for part in parts))),
    )


def read_labelled(
    location: str,
    *,
    uri_column: str | None = None,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    separator: str | None = None,
    task: TaskName | None = None,
) -> LabelledImages:
    """Read an image-folder tree (one folder for each class) or a table of locations and labels.

    A table's images need not be there: a missing one has no version, and whoever reads it finds
    out.

    Args:
        location: A folder or a table; local or in an object store.
        uri_column: Table column of the locations; None looks for the usual names.
        label_column: Table column of the labels; None looks for the usual names.
        label_columns: Columns of 0 and 1 instead, each named after the label that holds where it
            is 1.
        separator: What stands between several labels in the label column, if not `|`.
        task: What is learned or measured; None for any. Only `multilabel` has several labels of an
            image.

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
    return _Table(location, task).read(uri_column, label_column, tuple(label_columns), separator)


# --- tree -------------------------------------------------------------------------------------


def _read_tree(location: str) -> LabelledImages:
    tree = read_tree(location)
    return LabelledImages(
        tree.uris, tree.labels, tree.versions, splits=tree.splits, notes=tree.notes
    )


# --- table ------------------------------------------------------------------------------------


class _Table:
    """A table read whole, column by column as text; columns of bytes are left out."""

    def __init__(self, location: str, task: TaskName | None) -> None:
        self._location, self._task = location, task
        opened = open_table(location)
        self._bytes = {column.name for column in opened.schema if _holds_bytes(column.type)}
        names = [name for name in opened.schema.names if name not in self._bytes]
        self._table = pa.concat_tables(opened.read(names))
        self._notes: list[str] = []

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
            texts: Sequence[str | None] = self._read_one_hot(used[1:], uris)
        else:
            usual = MULTILABEL_COLUMNS if self._task == "multilabel" else LABEL_COLUMNS
            used.append(self._require(label_column, usual, "--label-column"))
            texts = self._read_labels(used[1], separator, uris)
        others = [name for name in self._table.column_names if name not in used]
        attributes = {name: texts_of(self._table.column(name)) for name in others}
        labelled = [row for row, text in enumerate(texts) if text is not None]
        if len(labelled) < len(texts):
            self._notes.append(
                f"Skipped {len(texts) - len(labelled):,} of {len(texts):,} rows of "
                f"{self._location}, which have no labels."
            )
        return LabelledImages(
            uris=tuple(uris[row] for row in labelled),
            labels=tuple(text for text in texts if text is not None),
            versions=_versions([uris[row] for row in labelled]),
            attributes={
                name: tuple(values[row] for row in labelled) for name, values in attributes.items()
            },
            splits=self._splits(attributes, labelled),
            notes=tuple(self._notes),
        )

    def _splits(
        self, attributes: Mapping[str, tuple[str, ...]], rows: Sequence[int]
    ) -> tuple[str, ...]:
        """Return which split each row is of, where a column says so; empty where none does."""
        name = next((name for name in attributes if name.casefold() == "split"), None)
        if name is None or not rows:
            return ()
        texts = [clean_label(attributes[name][row]) for row in rows]
        splits = tuple(SPLIT_FOLDERS.get(text.casefold(), "") for text in texts)
        if "" in splits or "train" not in splits:
            unknown = dict(zip(splits, texts, strict=True)).get("")
            fault = "never says train" if unknown is None else f"has {unknown!r}, which is no split"
            self._notes.append(
                f"Column {name!r} of {self._location} {fault}, so it does not divide the data."
            )
            return ()
        counts = ", ".join(f"{split} {count:,}" for split, count in Counter(splits).items())
        self._notes.append(
            f"The data are divided by the column {name!r} of {self._location}: {counts}."
        )
        return splits

    def _require(self, wanted: str | None, usual: Sequence[str], flag: str) -> str:
        table, known = self._table, self._table.column_names
        of_bytes = sorted(self._bytes.intersection((wanted,) if wanted else usual))
        if of_bytes and not set(known).intersection((wanted,) if wanted else usual):
            raise InputError(
                f"Column {of_bytes[0]!r} of {self._location} holds bytes, where text is read; name "
                f"another one with {flag}."
            )
        chosen = require_column(table, wanted, usual, self._location, flag=flag)
        others = [name for name in usual if name in known and name != chosen]
        if wanted is None and others:
            self._notes.append(
                f"Of the columns {chosen}, {', '.join(others)} of {self._location}, {chosen!r} is "
                f"read; {flag} names another one."
            )
        return chosen

    def _read_labels(
        self, column: str, separator: str | None, uris: Sequence[str]
    ) -> list[str | None]:
        """Return each row's label; None for a row without one in a column of lists.

        Result tables have such rows: those of the images that failed.
        """
        values = self._table.column(column)
        if pa.types.is_struct(values.type) or pa.types.is_map(values.type):
            raise InputError(
                f"Column {column!r} of {self._location} holds records, not labels; name another "
                "one with --label-column."
            )
        missing = pc.is_null(values, nan_is_null=True).to_pylist()
        written = values.to_pylist() if _is_list(values.type) else texts_of(values)
        texts: list[str | None] = []
        has_lists = _is_list(values.type)
        for row, value in enumerate(written):
            if missing[row]:
                texts.append(None)
                continue
            labels = self._listed(value, row, uris)
            if labels is not None:
                has_lists = True
                texts.append(self._joined(labels, value, separator, row, uris))
            elif separator is not None:
                texts.append(self._with_our_separator(value, separator, row, uris))
            else:
                texts.append(clean_label(value))
        if any(missing) and not has_lists:
            raise InputError(
                f"{self._row(missing.index(True), uris)} has no label in column {column!r}; give "
                "it one, or leave the row out."
            )
        if has_lists:  # an empty text is what CSV has for a list that is not there
            texts = [
                None if value == "" else text for value, text in zip(written, texts, strict=True)
            ]
        self._note_cleaned(written, texts)
        return texts

    def _listed(self, written: Any, row: int, uris: Sequence[str]) -> list[str] | None:
        """Return the labels of a cell that is a list; None for one that is a text."""
        try:
            values = written if isinstance(written, list) else parse_list(written)
            return None if values is None else labels_of_list(values)
        except ValueError as error:
            raise InputError(
                f"{self._row(row, uris)} has the labels {written!r}, which {error}."
            ) from None

    def _joined(
        self,
        labels: Sequence[str],
        written: object,
        separator: str | None,
        row: int,
        uris: Sequence[str],
    ) -> str:
        if separator is not None:
            raise InputError(
                f"{self._row(row, uris)} has the labels {written!r}: a list needs no --separator; "
                "leave it out."
            )
        if self._task not in (None, "multilabel") and len(labels) != 1:
            raise InputError(
                f"{self._row(row, uris)} has the labels {written!r}: {len(labels)} in a list, "
                f"where a {self._task} task takes one label; use --task multilabel, or name "
                "another column with --label-column."
            )
        if any(LABEL_SEPARATOR in label for label in labels):
            raise InputError(
                f"{self._row(row, uris)} has the labels {written!r}: in a list, none may contain "
                f"{LABEL_SEPARATOR!r}, which separates labels."
            )
        return LABEL_SEPARATOR.join(labels)

    def _note_cleaned(self, written: Sequence[object], texts: Sequence[str | None]) -> None:
        changed = [
            (one, other)
            for one, other in zip(written, texts, strict=True)
            if isinstance(one, str) and one != other and clean_label(one) == other
        ]
        if changed:
            one, other = changed[0]
            self._notes.append(
                f"Labels of {self._location} are read without the white space around them and in "
                f"one Unicode form, which changes {len(changed):,}, the first {one!r} to {other!r}."
            )

    def _with_our_separator(self, text: str, separator: str, row: int, uris: Sequence[str]) -> str:
        parts = [clean_label(part) for part in text.split(separator)]
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


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


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


# --- labels and tasks ---------------------------------------------------------------------------


def encode_labels(task: Task, images: LabelledImages) -> list[int | float | list[float]]:
    """Return all labels as targets.

    Raises:
        InputError: Naming the first label that is not one of the task's, and one that may be meant.
    """
    encoded = []
    for uri, text in zip(images.uris, images.labels, strict=True):
        try:
            encoded.append(task.encode(text))
        except InputError as error:
            known = look_alike(text, task.labels)
            meant = "" if known is None else f" It has {known!r}: write the label as that."
            raise InputError(f"The label of {uri} does not fit the model: {error}{meant}") from None
    return encoded


def require_enough(images: LabelledImages, task: TaskName, where: str) -> None:
    """Refuse data with a class so small that it cannot be in every part, or with one class.

    Raises:
        InputError: Naming the class.
    """
    if task in ("multiclass", "binary"):
        _require_classes(images, where)
        counts = Counter(images.labels)
        for label, count in sorted(counts.items()):
            if count < _MIN_PER_CLASS:
                plural = "image" if count == 1 else "images"
                other = look_alike(label, sorted(counts))
                meant = "" if other is None else f" It may be {other!r}, written otherwise."
                raise InputError(
                    f"Class {label!r} of {where} has {count} {plural}; at least {_MIN_PER_CLASS} "
                    "are needed, one each for training, validation and test. Add images or remove "
                    f"the class.{meant}"
                )
    elif len(images) < _MIN_PER_CLASS:
        raise InputError(f"{where} has {len(images)} images; at least {_MIN_PER_CLASS} are needed.")


def _require_classes(images: LabelledImages, where: str) -> None:
    """Refuse an empty label, and a folder that holds one folder, in which the class folders are."""
    if "" in images.labels:
        uri = images.uris[images.labels.index("")]
        raise InputError(
            f"A row of {where} ({uri}) has an empty label; name its class, or leave the row out."
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
