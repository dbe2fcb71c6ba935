"""Finds what should be checked in labelled data before training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eagleray.data.inspection import Fault
from eagleray.data.label_texts import MISSING_VALUES, alike
from eagleray.data.report import DataReport, Duplicates
from eagleray.data.split import SPLIT_NAMES

__all__ = ["Remedies", "warnings_of"]

_IMBALANCE = 10.0  # ratio of class sizes from which the smallest class is likely to be neglected
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Remedies:
    """What the reader of a warning can still do about it.

    Attributes:
        can_weight: Whether training does not weight the classes yet.
        divided: Splits that are made anew, so that duplicates can be kept out of them.
    """

    can_weight: bool = True
    divided: Collection[str] = SPLIT_NAMES


def warnings_of(report: DataReport, remedies: Remedies) -> tuple[str, ...]:
    """Return sentences on what should be checked before training, each with what to do."""
    return (
        *_warn_of_classes(report.classes, report.imbalance, remedies),
        *_warn_of_labels(report.classes),
        *_warn_of_unreadable(report.unreadable, report.num_images),
        *_warn_of_leaks(report, remedies),
        *_warn_of_contradictions(report.exact),
        *(() if report.objects is None else report.objects.warnings()),
    )


def _warn_of_classes(
    classes: Mapping[str, Mapping[str, int]], ratio: float | None, remedies: Remedies
) -> Iterator[str]:
    if ratio is not None and ratio >= _IMBALANCE:
        labels = list(classes)
        weight = "train with --class-weights balanced, " if remedies.can_weight else ""
        largest, smallest = sum(classes[labels[0]].values()), sum(classes[labels[-1]].values())
        yield (
            f"Class {labels[0]!r} has {_images(largest)} and class {labels[-1]!r} {smallest:,}, "
            f"{ratio:,.0f} times fewer: look at the metrics of each class, "
            f"{weight}or add images."
        )
    for split in SPLIT_NAMES:
        if any(counts[split] for counts in classes.values()):
            lacking = [label for label, counts in classes.items() if not counts[split]]
            if lacking:
                yield (
                    f"The {split} split has no image of {len(lacking):,} of {len(classes):,} "
                    f"classes ({_some(map(repr, lacking))})."
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


def _warn_of_unreadable(faults: Sequence[Fault], num_images: int) -> Iterator[str]:
    if faults:
        yield (
            f"{len(faults):,} of {_images(num_images)} cannot be read and will be skipped; the "
            f"first is {faults[0]}."
        )


def _warn_of_leaks(report: DataReport, remedies: Remedies) -> Iterator[str]:
    for split, (num_exact, num_near) in report.leaked.items():
        advice = "remove them from one of the splits"
        if split in remedies.divided:
            advice += ", or keep them in one with --keep-duplicates-together"
        for number, what, found in (
            (num_exact, "the same bytes as images", report.exact),
            (num_near, "near-duplicates", report.near),
        ):
            leak = next(filter(None, (duplicates.leak_into(split) for duplicates in found)), None)
            if number and leak is not None:
                late, early = leak
                yield (
                    f"{_images(number)} of the {split} split {'has' if number == 1 else 'have'} "
                    f"{what} in other splits, so that its metrics are too optimistic; the first "
                    f"is {late.uri}, as {early.uri} of the {early.split} split: {advice}."
                )


def _warn_of_contradictions(exact: Sequence[Duplicates]) -> Iterator[str]:
    found = [duplicates for duplicates in exact if duplicates.contradict]
    if found:
        one = found[0].rows[0]
        other = next(row for row in found[0].rows if row.label != one.label)
        count = "1 image has" if len(found) == 1 else f"{len(found):,} images have"
        yield (
            f"{count} exact duplicates with another label; the first is {one.uri} as "
            f"{one.label!r} and {other.uri} as {other.label!r}: correct the labels."
        )


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MAX_NAMED]) + ", …" * (len(listed) > _MAX_NAMED)
