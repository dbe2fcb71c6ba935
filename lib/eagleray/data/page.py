"""Renders the page of a data report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from eagleray.data.report import DataReport, Duplicates, ImageRow
from eagleray.data.split import SPLIT_NAMES
from eagleray.io.read_ahead import read_ahead
from eagleray.reports import bar_chart, histogram, render_page, thumbnail

__all__ = ["render_data_report"]

_MAX_CLASSES_SHOWN = 60
_MAX_BARS = 20
_MAX_FAULTS_SHOWN = 100
_MAX_GROUPS_SHOWN = 20
_MAX_IMAGES_SHOWN = 6  # in a group of duplicates


def render_data_report(report: DataReport, about: Mapping[str, object], *, title: str) -> bytes:
    """Render the page of a report.

    Args:
        report: The report.
        about: Facts on the data and on how they were divided, by name.
        title: Title of the page.

    Returns:
        A self-contained HTML file.
    """
    contradicting = [group for group in report.exact if group.contradict]
    agreeing = [group for group in report.exact if not group.contradict]
    across = [group for group in agreeing if group.across_splits]
    within = [group for group in agreeing if not group.across_splits]
    kinds = (
        ("Exact duplicates with different labels", contradicting),
        ("Exact duplicates across splits", across),
        ("Near-duplicates across splits", list(report.near)),
        ("Exact duplicates within a split", within),
    )
    objects = () if report.objects is None else tuple(report.objects.classes.items())
    return render_page(
        "data.html.j2",
        title=title,
        report=report,
        about=about,
        plots=_plots(report),
        classes=list(report.classes.items())[:_MAX_CLASSES_SHOWN],
        num_more_classes=max(0, len(report.classes) - _MAX_CLASSES_SHOWN),
        split_names=SPLIT_NAMES,
        objects=report.objects,
        object_classes=objects[:_MAX_CLASSES_SHOWN],
        num_more_object_classes=max(0, len(objects) - _MAX_CLASSES_SHOWN),
        unreadable=report.unreadable[:_MAX_FAULTS_SHOWN],
        num_more_unreadable=max(0, len(report.unreadable) - _MAX_FAULTS_SHOWN),
        duplicates=[
            {"title": heading, "count": len(found), "groups": _with_pictures(found)}
            for heading, found in kinds
            if found
        ],
    )


def _plots(report: DataReport) -> list[str]:
    plots = []
    if report.classes:
        shown = list(report.classes.items())[:_MAX_BARS]
        title = "Images per class"
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


def _with_pictures(found: Sequence[Duplicates]) -> list[list[dict[str, Any]]]:
    groups = [group.rows[:_MAX_IMAGES_SHOWN] for group in found[:_MAX_GROUPS_SHOWN]]

    def show(row: ImageRow) -> dict[str, Any]:
        # Images that no worker could decode are not decoded here either.
        return {**row.as_json(), "picture": thumbnail(row.uri) if row.readable else None}

    shown = read_ahead(show, itertools.chain.from_iterable(groups))
    return [list(itertools.islice(shown, len(group))) for group in groups]
