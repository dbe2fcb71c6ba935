"""Counts classes, sizes and formats of labelled data, and finds images in more than one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eagleray.data.data_warnings import Remedies, warnings_of
from eagleray.data.inspection import Inspection
from eagleray.data.near_duplicates import find_near_duplicates
from eagleray.data.object_report import count_objects, describe_objects
from eagleray.data.report import DataReport, Duplicates, ImageRow, Range
from eagleray.data.split import SPLIT_NAMES, Split
from eagleray.tasks import task_class

__all__ = ["make_report"]

_MAX_PAIRS = 1000  # near-duplicates kept in a report; all of them are counted


class _Rows:
    """Rows of all splits, with what the inspection found of each."""

    def __init__(self, split: Split, inspection: Inspection, *, has_objects: bool) -> None:
        reasons, digests = (
            inspection.table.column(name).to_pylist() for name in ("reason", "sha256")
        )
        self._near = find_near_duplicates(inspection)
        place = {uri: index for index, uri in enumerate(inspection.uris)}
        self.rows: list[ImageRow] = []
        self.sha256: list[str | None] = []
        self._shown: list[int] = []
        for name, images in split.by_name.items():
            for uri, label in zip(images.uris, images.labels, strict=True):
                at = place[uri]
                shown = describe_objects(label) if has_objects else label
                self.rows.append(ImageRow(uri, name, shown, reasons[at] is None))
                self.sha256.append(digests[at])
                self._shown.append(int(self._near.pictures[at]))

    def exact_duplicates(self) -> list[list[int]]:
        """Return the rows of each content that occurs more than once."""
        found: dict[str, list[int]] = {}
        for row, digest in enumerate(self.sha256):
            if digest is not None:
                found.setdefault(digest, []).append(row)
        return [rows for rows in found.values() if len(rows) > 1]

    def near_across(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield rows of a split with their near-duplicates in a split before it."""
        shown: dict[int, dict[str, list[int]]] = {}
        for row, picture in enumerate(self._shown):
            if picture >= 0:
                splits = shown.setdefault(picture, {})
                splits.setdefault(self.rows[row].split, []).append(row)
        pairs = [(picture, picture) for picture in shown]
        for one, other in zip(self._near.left.tolist(), self._near.right.tolist(), strict=True):
            pairs += [(one, other), (other, one)]
        for one, other in pairs:
            for split, rows in shown.get(one, {}).items():
                for before in SPLIT_NAMES[: SPLIT_NAMES.index(split)]:
                    if before in shown.get(other, {}):
                        yield rows, shown[other][before]


def make_report(
    split: Split,
    inspection: Inspection,
    task: str,
    notes: Sequence[str] = (),
    remedies: Remedies | None = None,
) -> DataReport:
    """Count what is in each split, and find what is in more than one.

    Args:
        split: The data.
        inspection: Inspection of all their images.
        task: Task that the data are for.
        notes: Sentences on how the data were read.
        remedies: What the reader of a warning can still do; None for everything.
    """
    has_objects = task_class(task).label_kind == "objects"
    rows = _Rows(split, inspection, has_objects=has_objects)
    classes = _count_classes(split, task)
    exact = [
        Duplicates(tuple(rows.rows[row] for row in group)) for group in rows.exact_duplicates()
    ]
    near, leaked = _find_leaks(rows)
    formats = Counter(name for name in inspection.table.column("format").to_pylist() if name)
    report = DataReport(
        splits={name: len(images) for name, images in split.by_name.items()},
        classes=classes,
        sizes=_sizes(inspection),
        formats=dict(formats.most_common()),
        unreadable=inspection.faults,
        exact=tuple(exact),
        near=near,
        leaked=leaked,
        notes=tuple(notes),
        objects=count_objects(split, inspection) if has_objects else None,
    )
    return replace(report, warnings=warnings_of(report, remedies or Remedies()))


def _count_classes(split: Split, task: str) -> dict[str, dict[str, int]]:
    labels_in = task_class(task).labels_in
    counts: dict[str, Counter[str]] = {}
    for name, images in split.by_name.items():
        for text in images.labels:
            for label in labels_in(text):
                counts.setdefault(label, Counter())[name] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {label: {name: found[name] for name in SPLIT_NAMES} for label, found in ordered}


def _sizes(inspection: Inspection) -> dict[str, Range]:
    readable = inspection.table.filter(inspection.table.column("reason").is_null())
    if not readable.num_rows:
        return {}
    numbers = {name: readable.column(name).to_numpy() for name in ("width", "height")}
    numbers["kilobytes"] = readable.column("num_bytes").to_numpy() / 1000
    return {name: _range(values) for name, values in numbers.items()}


def _range(values: Any) -> Range:
    counts, edges = np.histogram(values, bins=30)
    return Range(
        min=float(values.min()),
        median=float(np.median(values)),
        max=float(values.max()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _find_leaks(rows: _Rows) -> tuple[tuple[Duplicates, ...], dict[str, tuple[int, int]]]:
    """Return near-duplicates in two splits, and the number of images that each split shares."""
    exact: set[int] = set()
    for group in rows.exact_duplicates():
        splits = [SPLIT_NAMES.index(rows.rows[row].split) for row in group]
        exact |= {row for row, split in zip(group, splits, strict=True) if split > min(splits)}
    nearly: set[int] = set()
    pairs: list[Duplicates] = []
    for later, earlier in rows.near_across():
        new = [row for row in later if row not in exact]
        nearly |= set(new)
        if new and len(pairs) < _MAX_PAIRS:
            pairs.append(Duplicates((rows.rows[new[0]], rows.rows[earlier[0]])))

    def count(found: set[int], split: str) -> int:
        return sum(rows.rows[row].split == split for row in found)

    leaked = {split: (count(exact, split), count(nearly, split)) for split in SPLIT_NAMES[1:]}
    return tuple(pairs), leaked
