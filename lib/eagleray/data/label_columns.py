"""Reads labels from a column of a table, or from a column of 0 and 1 for each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.data.label_format import SPLIT_WORDS, Labels
from eagleray.data.label_texts import clean_label, labels_of_list, parse_list
from eagleray.io.tables import require_column, texts_of
from eagleray.tasks import LABEL_SEPARATOR, task_class

__all__ = ["LABEL_COLUMNS", "LabelColumns"]

LABEL_COLUMNS = ("label", "labels", "class", "target")
"""Names of columns that hold the label when the user names none, best first."""

_MULTILABEL_COLUMNS = ("labels", "label", "class", "target")  # as result tables have them
_ONE_HOT = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "-0.0", "false"), False),
}


class LabelColumns:
    """Reads the labels of a table's rows; every other column is an attribute.

    Args:
        location: What the user named, for messages.
        uris: Location of each row's image.
        table: The user's columns beside the images.
        byte_columns: Columns of bytes, which are neither labels nor attributes.
        task: Task to read labels for; None for any. Only `multilabel` has several labels of an
            image.
    """

    def __init__(
        self,
        location: str,
        uris: Sequence[str],
        table: pa.Table,
        byte_columns: Sequence[str],
        task: str | None,
    ) -> None:
        self._location, self._uris, self._task = location, uris, task
        self._has_many_labels = task is not None and task_class(task).has_many_labels
        nested = [column.name for column in table.schema if _holds_bytes(column.type)]
        self._bytes = {*byte_columns, *nested}
        self._table = table.drop_columns(nested)
        self._notes: list[str] = []

    def read(
        self, label_column: str | None, label_columns: Sequence[str], separator: str | None
    ) -> Labels:
        """Read the labels.

        Args:
            label_column: Column of labels; None looks for the usual names.
            label_columns: Columns of 0 and 1 instead.
            separator: Text between several labels in the label column, if not `|`.

        Raises:
            InputError: If a column is missing, or a row has no label.
        """
        if label_columns:
            used = [self._require(name, (), "--label-columns") for name in label_columns]
            texts: Sequence[str | None] = self._read_one_hot(used)
        else:
            usual = _MULTILABEL_COLUMNS if self._has_many_labels else LABEL_COLUMNS
            used = [self._require(label_column, usual, "--label-column")]
            texts = self._read_labels(used[0], separator)
        rows = [row for row, text in enumerate(texts) if text is not None]
        if len(rows) < len(texts):
            self._notes.append(
                f"Skipped {len(texts) - len(rows):,} of {len(texts):,} rows of {self._location}, "
                "which have no labels."
            )
        labelled = self._table.drop_columns(used).take(rows)
        attributes = {name: texts_of(labelled.column(name)) for name in labelled.column_names}
        return Labels(
            rows=rows,
            labels=tuple(text for text in texts if text is not None),
            splits=self._splits(attributes),
            attributes=attributes,
            notes=tuple(self._notes),
        )

    def _splits(self, attributes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Return the split of each row from a column of that name; empty without one."""
        name = next((name for name in attributes if name.casefold() == "split"), None)
        if name is None or not attributes[name]:
            return ()
        texts = [clean_label(text) for text in attributes[name]]
        splits = tuple(SPLIT_WORDS.get(text.casefold(), "") for text in texts)
        if "" in splits or "train" not in splits:
            unknown = dict(zip(splits, texts, strict=True)).get("")
            fault = (
                "never says train" if unknown is None else f"has {unknown!r}, which is not a split"
            )
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

    def _read_labels(self, column: str, separator: str | None) -> list[str | None]:
        """Return each row's label; None for a row without one in a column of lists.

        Result tables have such rows for images that failed.
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
            labels = self._listed(value, row)
            if labels is not None:
                has_lists = True
                texts.append(self._joined(labels, value, separator, row))
            elif separator is not None:
                texts.append(self._with_own_separator(value, separator, row))
            else:
                texts.append(clean_label(value))
        if any(missing) and not has_lists:
            raise InputError(
                f"{self._row(missing.index(True))} has no label in column {column!r}; give "
                "it one, or leave the row out."
            )
        if has_lists:  # an empty text is what CSV has for a list that is not there
            texts = [
                None if value == "" else text for value, text in zip(written, texts, strict=True)
            ]
        self._note_cleaned(written, texts)
        return texts

    def _listed(self, written: Any, row: int) -> list[str] | None:
        """Return the labels of a cell that is a list; None for one that is text."""
        try:
            values = written if isinstance(written, list) else parse_list(written)
            return None if values is None else labels_of_list(values)
        except ValueError as error:
            raise InputError(
                f"{self._row(row)} has the labels {written!r}, which {error}."
            ) from None

    def _joined(
        self,
        labels: Sequence[str],
        written: object,
        separator: str | None,
        row: int,
    ) -> str:
        if separator is not None:
            raise InputError(
                f"{self._row(row)} has the labels {written!r}: a list needs no --separator; "
                "leave it out."
            )
        if self._task is not None and not self._has_many_labels and len(labels) != 1:
            raise InputError(
                f"{self._row(row)} has the labels {written!r}: {len(labels)} in a list, "
                f"where a {self._task} task takes one label; use --task multilabel, or name "
                "another column with --label-column."
            )
        if any(LABEL_SEPARATOR in label for label in labels):
            raise InputError(
                f"{self._row(row)} has the labels {written!r}: in a list, none may contain "
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

    def _with_own_separator(self, text: str, separator: str, row: int) -> str:
        parts = [clean_label(part) for part in text.split(separator)]
        if any(LABEL_SEPARATOR in part for part in parts):
            raise InputError(
                f"{self._row(row)} has the labels {text!r}: with {separator!r} between "
                f"labels, none may contain {LABEL_SEPARATOR!r}."
            )
        return LABEL_SEPARATOR.join(dict.fromkeys(filter(None, parts)))

    def _read_one_hot(self, columns: Sequence[str]) -> tuple[str, ...]:
        for name in columns:
            if LABEL_SEPARATOR in name:
                raise InputError(
                    f"Column {name!r} of {self._location} cannot name a label: "
                    f"{LABEL_SEPARATOR!r} separates labels; rename it."
                )
        names: list[list[str]] = [[] for _ in self._uris]
        for name in columns:
            for row, text in enumerate(texts_of(self._table.column(name))):
                holds = _ONE_HOT.get(text.strip().lower())
                if holds is None:
                    raise InputError(
                        f"{self._row(row)} has {text!r} in column {name!r}, where 0 or 1 "
                        "says whether the label holds."
                    )
                if holds:
                    names[row].append(name)
        return tuple(LABEL_SEPARATOR.join(row) for row in names)

    def _row(self, row: int) -> str:
        """Name a row for people: counted from 1, a header not included."""
        return f"Row {row + 1:,} of {self._location} ({self._uris[row] or 'no location'})"


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
    """Whether values are bytes, or contain bytes."""
    if any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary)):
        return True
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
