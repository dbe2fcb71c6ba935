"""What a person should know of labelled data before a model learns them: figures and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.data.inspection import Fault, Inspection
from eagleray.data.label_texts import MISSING_VALUES, alike
from eagleray.data.near_duplicates import find_near_duplicates
from eagleray.data.split import SPLIT_NAMES, Split
from eagleray.reports import bar_chart, histogram, render_page, thumbnail
from eagleray.tasks import task_class

__all__ = ["Copies", "DataReport", "Picture", "Range", "make_report", "render_data_report"]

_IMBALANCE = 10.0  # times, from which the smallest class is likely to be neglected
_MAX_PAIRS = 1000  # of near-duplicates that are kept; they are counted all
_MAX_CLASSES_SHOWN = 60
_MAX_BARS = 20
_MAX_FAULTS_SHOWN = 100
_MAX_COPIES_SHOWN = 20
_MAX_PICTURES_SHOWN = 6  # of one group of copies
_PICTURES_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """A row of the data, as a report names it."""

    uri: str
    part: str
    label: str
    readable: bool = True

    def as_json(self) -> dict[str, str]:
        """For scripts."""
        return {"uri": self.uri, "part": self.part, "label": self.label}


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows that show the same: the same bytes, or nearly the same picture."""

    pictures: tuple[Picture, ...]

    @property
    def are_apart(self) -> bool:
        """Whether they are in more than one part."""
        return len({picture.part for picture in self.pictures}) > 1

    @property
    def contradict(self) -> bool:
        """Whether they have more than one label."""
        return len({picture.label for picture in self.pictures}) > 1

    def leak_into(self, part: str) -> tuple[Picture, Picture] | None:
        """Return one of them in a part, and one in a part before it; None without such."""
        before = SPLIT_NAMES[: SPLIT_NAMES.index(part)]
        late = next((picture for picture in self.pictures if picture.part == part), None)
        early = next((picture for picture in self.pictures if picture.part in before), None)
        return None if late is None or early is None else (late, early)

    def as_json(self) -> list[dict[str, str]]:
        """For scripts."""
        return [picture.as_json() for picture in self.pictures]


@dataclass(frozen=True, slots=True)
class Range:
    """How a number is spread over the readable images.

    Attributes:
        least: The smallest value.
        middle: The median.
        most: The largest value.
        edges: Of the bins of a histogram.
        counts: Images in each bin.
    """

    least: float
    middle: float
    most: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def as_json(self) -> dict[str, float]:
        """For scripts."""
        return {"least": self.least, "middle": self.middle, "most": self.most}


@dataclass(frozen=True, slots=True)
class DataReport:
    """What labelled data are like.

    Attributes:
        parts: Images in each part.
        classes: Images of each class in each part, the largest class first; none for regression.
        sizes: `width`, `height` and `kilobytes` of the readable images.
        formats: Images of each format, the commonest first.
        unreadable: Images that cannot be read.
        same: Rows with the same bytes.
        near: Pairs of near-duplicates in different parts, the first thousand.
        leaked: For each part that measures, its images that are also in a part before it: byte by
            byte, and nearly.
        warnings: Sentences on what should be looked at before training.
        notes: Sentences on how the data were read, and what was skipped.
    """

    parts: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, Range]
    formats: Mapping[str, int]
    unreadable: tuple[Fault, ...]
    same: tuple[Copies, ...]
    near: tuple[Copies, ...]
    leaked: Mapping[str, tuple[int, int]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        """All rows."""
        return sum(self.parts.values())

    @property
    def imbalance(self) -> float | None:
        """How many times the smallest class the largest one is; None without classes."""
        return _imbalance(self.classes)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "images": self.num_images,
            "parts": dict(self.parts),
            "classes": {label: dict(counts) for label, counts in self.classes.items()},
            "imbalance": self.imbalance,
            "sizes": {name: spread.as_json() for name, spread in self.sizes.items()},
            "formats": dict(self.formats),
            "unreadable": [
                {"uri": fault.uri, "reason": fault.reason, "message": fault.message}
                for fault in self.unreadable
            ],
            "same_bytes": [copies.as_json() for copies in self.same],
            "near_duplicates_across_splits": [copies.as_json() for copies in self.near],
            "leaked": {
                part: {"same_bytes": same, "near_duplicates": near}
                for part, (same, near) in self.leaked.items()
            },
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


# --- count ------------------------------------------------------------------------------------


class _Rows:
    """The rows of all parts, with what the inspection says of each."""

    def __init__(self, split: Split, inspection: Inspection) -> None:
        reasons, digests = (
            inspection.table.column(name).to_pylist() for name in ("reason", "sha256")
        )
        self._near = find_near_duplicates(inspection)
        place = {uri: index for index, uri in enumerate(inspection.uris)}
        self.pictures: list[Picture] = []
        self.sha256: list[str | None] = []
        self._shown: list[int] = []
        for name, part in split.by_name.items():
            for uri, label in zip(part.uris, part.labels, strict=True):
                at = place[uri]
                self.pictures.append(Picture(uri, name, label, reasons[at] is None))
                self.sha256.append(digests[at])
                self._shown.append(int(self._near.pictures[at]))

    def same_bytes(self) -> list[list[int]]:
        """Return the rows of each content that there is more than once."""
        found: dict[str, list[int]] = {}
        for row, digest in enumerate(self.sha256):
            if digest is not None:
                found.setdefault(digest, []).append(row)
        return [rows for rows in found.values() if len(rows) > 1]

    def near_across(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield rows of a part and near-duplicates of them in a part before it."""
        shown: dict[int, dict[str, list[int]]] = {}
        for row, picture in enumerate(self._shown):
            if picture >= 0:
                parts = shown.setdefault(picture, {})
                parts.setdefault(self.pictures[row].part, []).append(row)
        pairs = [(picture, picture) for picture in shown]
        for one, other in zip(self._near.left.tolist(), self._near.right.tolist(), strict=True):
            pairs += [(one, other), (other, one)]
        for one, other in pairs:
            for part, rows in shown.get(one, {}).items():
                for before in SPLIT_NAMES[: SPLIT_NAMES.index(part)]:
                    if before in shown.get(other, {}):
                        yield rows, shown[other][before]


def make_report(
    split: Split, inspection: Inspection, task: str, notes: Sequence[str] = ()
) -> DataReport:
    """Count what is in each part, and find what is in more than one.

    Args:
        split: The parts.
        inspection: Of all their images.
        task: What is to be learned.
        notes: On how the data were read.
    """
    rows = _Rows(split, inspection)
    classes = _count_classes(split, task)
    same = [Copies(tuple(rows.pictures[row] for row in group)) for group in rows.same_bytes()]
    near, leaked = _find_leaks(rows)
    formats = Counter(name for name in inspection.table.column("format").to_pylist() if name)
    faults = inspection.faults
    return DataReport(
        parts={name: len(part) for name, part in split.by_name.items()},
        classes=classes,
        sizes=_sizes(inspection),
        formats=dict(formats.most_common()),
        unreadable=faults,
        same=tuple(same),
        near=near,
        leaked=leaked,
        warnings=(
            *_warn_of_classes(classes),
            *_warn_of_labels(classes),
            *_warn_of_faults(faults, len(inspection)),
            *_warn_of_leaks(leaked, same, near),
            *_warn_of_contradictions(same),
        ),
        notes=tuple(notes),
    )


def _count_classes(split: Split, task: str) -> dict[str, dict[str, int]]:
    labels_in = task_class(task).labels_in
    counts: dict[str, Counter[str]] = {}
    for name, part in split.by_name.items():
        for text in part.labels:
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
        least=float(values.min()),
        middle=float(np.median(values)),
        most=float(values.max()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _find_leaks(rows: _Rows) -> tuple[tuple[Copies, ...], dict[str, tuple[int, int]]]:
    """Return near-duplicates in two parts, and how many images each part has from others."""
    exact: set[int] = set()
    for group in rows.same_bytes():
        parts = [SPLIT_NAMES.index(rows.pictures[row].part) for row in group]
        exact |= {row for row, part in zip(group, parts, strict=True) if part > min(parts)}
    nearly: set[int] = set()
    pairs: list[Copies] = []
    for later, earlier in rows.near_across():
        new = [row for row in later if row not in exact]
        nearly |= set(new)
        if new and len(pairs) < _MAX_PAIRS:
            pairs.append(Copies((rows.pictures[new[0]], rows.pictures[earlier[0]])))

    def count(found: set[int], part: str) -> int:
        return sum(rows.pictures[row].part == part for row in found)

    leaked = {part: (count(exact, part), count(nearly, part)) for part in SPLIT_NAMES[1:]}
    return tuple(pairs), leaked


def _imbalance(classes: Mapping[str, Mapping[str, int]]) -> float | None:
    totals = [sum(counts.values()) for counts in classes.values()]
    return max(totals) / min(totals) if totals else None


# --- warn -------------------------------------------------------------------------------------


def _warn_of_classes(classes: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    ratio = _imbalance(classes)
    if ratio is not None and ratio >= _IMBALANCE:
        labels = list(classes)
        largest, smallest = sum(classes[labels[0]].values()), sum(classes[labels[-1]].values())
        yield (
            f"Class {labels[0]!r} has {_images(largest)} and class {labels[-1]!r} {smallest:,}, "
            f"{ratio:,.0f} times fewer: look at the metrics of each class, weight the classes or "
            "add images."
        )
    for part in SPLIT_NAMES:
        if any(counts[part] for counts in classes.values()):
            lacking = [label for label, counts in classes.items() if not counts[part]]
            if lacking:
                yield (
                    f"The {part} part has no image of {len(lacking):,} of {len(classes):,} classes "
                    f"({_some(map(repr, lacking))})."
                )


def _warn_of_labels(classes: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    totals = {label: sum(counts.values()) for label, counts in classes.items()}
    for group in alike(classes):
        listed = ", ".join(f"{label!r} ({_images(totals[label])})" for label in group)
        yield (
            f"The labels {listed} differ only in how they are written: if they are one class, "
            "give it one name."
        )
    for label in sorted(MISSING_VALUES & classes.keys()):
        yield (
            f"{_images(totals[label])} {'has' if totals[label] == 1 else 'have'} the label "
            f"{label!r}, which often stands for a missing value: leave the rows out if it does."
        )


def _warn_of_faults(faults: Sequence[Fault], num_images: int) -> Iterator[str]:
    if faults:
        yield (
            f"{len(faults):,} of {_images(num_images)} cannot be read and will be left out; the "
            f"first is {faults[0]}."
        )


def _warn_of_leaks(
    leaked: Mapping[str, tuple[int, int]], same: Sequence[Copies], near: Sequence[Copies]
) -> Iterator[str]:
    for part, (num_same, num_near) in leaked.items():
        for number, what, found in (
            (num_same, "the same bytes as images", same),
            (num_near, "near-duplicates", near),
        ):
            leak = next(filter(None, (copies.leak_into(part) for copies in found)), None)
            if number and leak is not None:
                late, early = leak
                yield (
                    f"{_images(number)} of the {part} part {'has' if number == 1 else 'have'} "
                    f"{what} in other parts, so that what is measured there is too good; the first "
                    f"is {late.uri}, as {early.uri} of the {early.part} part: keep copies together "
                    "when you split, or take them out."
                )


def _warn_of_contradictions(same: Sequence[Copies]) -> Iterator[str]:
    found = [copies for copies in same if copies.contradict]
    if found:
        one = found[0].pictures[0]
        other = next(picture for picture in found[0].pictures if picture.label != one.label)
        count = "1 picture has" if len(found) == 1 else f"{len(found):,} pictures have"
        yield (
            f"{count} more than one label, byte by byte the same; the first is {one.uri} as "
            f"{one.label!r} and {other.uri} as {other.label!r}: correct the labels."
        )


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _some(names: Any, most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + ", …" * (len(listed) > most)


# --- show -------------------------------------------------------------------------------------


def render_data_report(report: DataReport, about: Mapping[str, object], *, title: str) -> bytes:
    """Make the page.

    Args:
        report: What to show.
        about: Where the data are and how they were divided, in the words of its reader.
        title: Of the page.

    Returns:
        A self-contained HTML file.
    """
    contradicting = [copies for copies in report.same if copies.contradict]
    apart = [copies for copies in report.same if copies.are_apart and not copies.contradict]
    within = [copies for copies in report.same if not copies.are_apart and not copies.contradict]
    kinds = (
        ("The same bytes under different labels", contradicting),
        ("The same bytes in different parts", apart),
        ("Near-duplicates in different parts", list(report.near)),
        ("The same bytes within a part", within),
    )
    return render_page(
        "data.html.j2",
        title=title,
        report=report,
        about=about,
        plots=_plots(report),
        classes=list(report.classes.items())[:_MAX_CLASSES_SHOWN],
        num_more_classes=max(0, len(report.classes) - _MAX_CLASSES_SHOWN),
        part_names=SPLIT_NAMES,
        unreadable=report.unreadable[:_MAX_FAULTS_SHOWN],
        num_more_unreadable=max(0, len(report.unreadable) - _MAX_FAULTS_SHOWN),
        copies=[
            {"title": heading, "count": len(found), "groups": _with_pictures(found)}
            for heading, found in kinds
            if found
        ],
    )


def _plots(report: DataReport) -> list[str]:
    plots = []
    if report.classes:
        shown = list(report.classes.items())[:_MAX_BARS]
        title = "Images for each class"
        if len(report.classes) > len(shown):
            title += f" (the {len(shown)} largest of {len(report.classes)})"
        names = [label or "(none)" for label, _ in shown]
        plots.append(bar_chart(names, [sum(counts.values()) for _, counts in shown], title=title))
    labels = {"width": "pixels", "height": "pixels", "kilobytes": "kB, encoded"}
    for name, spread in report.sizes.items():
        title = {"kilobytes": "File size"}.get(name, name.capitalize())
        plots.append(histogram(spread.edges, spread.counts, title=title, label=labels[name]))
    if report.formats:
        names, counts = list(report.formats), list(report.formats.values())
        plots.append(bar_chart(names, counts, title="Formats"))
    return plots


def _with_pictures(found: Sequence[Copies]) -> list[list[dict[str, Any]]]:
    groups = [copies.pictures[:_MAX_PICTURES_SHOWN] for copies in found[:_MAX_COPIES_SHOWN]]

    def show(picture: Picture) -> dict[str, Any]:
        # What no worker could decode is not decoded here.
        shown = thumbnail(picture.uri) if picture.readable else None
        return {**picture.as_json(), "picture": shown}

    with ThreadPoolExecutor(_PICTURES_AT_A_TIME) as pool:
        return [list(pool.map(show, group)) for group in groups]
