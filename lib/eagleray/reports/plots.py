"""Draws small plots as SVG text, with matplotlib but without a display or global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "bar_chart",
    "confusion_matrix",
    "curves",
    "dot_plot",
    "histogram",
    "learning_curves",
    "line",
    "scatter",
    "series",
]

INK, ACCENT, LINE = "#1f2a37", "#1f6f8b", "#a9b4c0"
COLORS = (ACCENT, "#c4762b", "#5b8c3a", "#8a5a9e", "#b3392f", "#6b7280", "#c9a227", "#3b6fb6")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "eagleray", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _plain(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def _short(text: str, max_length: int) -> str:
    """Return a text without its middle if it is long: names often differ at their ends."""
    if len(text) > max_length:
        end = max_length // 2
        text = f"{text[: max_length - end - 1]}…{text[-end:]}"
    return _plain(text)


def _label(axes: Any, *, title: str, x_label: str = "", y_label: str = "") -> None:
    axes.set_title(_plain(title), fontsize=10, loc="left", color=INK)
    axes.set_xlabel(_plain(x_label), fontsize=8, color=INK)
    axes.set_ylabel(_plain(y_label), fontsize=8, color=INK)


def bar_chart(names: Sequence[str], counts: Sequence[int], *, title: str) -> str:
    """Draw a horizontal bar chart with counts, the first bar on top."""
    figure, axes = _figure(6.0, 0.5 + 0.26 * max(len(names), 1))
    positions = range(len(names))
    bars = axes.barh(positions, counts, color=ACCENT)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=8)
    axes.set_yticks(positions, labels=[_short(name, 40) for name in names])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["bottom"]].set_visible(False)
    axes.margins(x=0.12)
    _label(axes, title=title)
    return _svg(figure)


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, label: str) -> str:
    """Draw a histogram from bin edges and counts."""
    figure, axes = _figure(6.0, 2.6)
    axes.stairs(counts, edges, fill=True, color=ACCENT)
    _label(axes, title=title, x_label=label, y_label="images")
    return _svg(figure)


def line(x: Sequence[float], y: Sequence[float], *, title: str, x_label: str, y_label: str) -> str:
    """Draw y over x, with the y axis from zero."""
    figure, axes = _figure(6.0, 2.6)
    axes.plot(x, y, color=ACCENT, linewidth=1.6, marker=".", markersize=4)
    axes.set_ylim(bottom=0)
    _label(axes, title=title, x_label=x_label, y_label=y_label)
    return _svg(figure)


def curves(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
) -> str:
    """Draw named lines in the unit square, such as ROC curves, with the first one emphasized.

    Args:
        lines: Name, x and y of each line.
        title: Title of the plot.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        diagonal: Whether to draw the diagonal, the line of chance or of perfect calibration.
    """
    figure, axes = _figure(6.0, 4.4)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle="--")
    for index, (name, x, y) in enumerate(lines):
        width, color = 1.0 if index else 2.0, COLORS[index % len(COLORS)]
        marker = {"marker": "o", "markersize": 3} if len(x) <= 20 else {}
        axes.plot(x, y, color=color, linewidth=width, label=_short(name, 64), **marker)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    _label(axes, title=title, x_label=x_label, y_label=y_label)
    axes.legend(fontsize=7, frameon=False, loc="best")
    return _svg(figure)


def confusion_matrix(
    labels: Sequence[str], counts: npt.NDArray[np.integer[Any]], *, title: str
) -> str:
    """Draw a confusion matrix with a row for each true label, coloured by the share of the row.

    Args:
        labels: Labels of rows and columns.
        counts: Counts of shape (num_labels, num_labels), true label first.
        title: Title of the plot.
    """
    size = 2.2 + 0.36 * len(labels)
    figure, axes = _figure(max(size, 4.4), max(size, 3.6))
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_short(label, 24) for label in labels]
    axes.set_xticks(range(len(names)), labels=names, rotation=90)
    axes.set_yticks(range(len(names)), labels=names)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else INK
        text = f"{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    _label(axes, title=title, x_label="predicted", y_label="true")
    return _svg(figure)


def scatter(
    x: Sequence[float], y: Sequence[float], *, title: str, x_label: str, y_label: str
) -> str:
    """Draw a scatter plot with the diagonal x = y."""
    figure, axes = _figure(6.0, 4.4)
    lowest, highest = min(*x, *y), max(*x, *y)
    axes.plot([lowest, highest], [lowest, highest], color=LINE, linewidth=1, linestyle="--")
    # Thousands of points are rasterized, so that pages render quickly.
    axes.scatter(x, y, s=8, color=ACCENT, alpha=0.5, linewidths=0, rasterized=len(x) > 500)
    _label(axes, title=title, x_label=x_label, y_label=y_label)
    return _svg(figure)


def series(
    x: Sequence[float],
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    logarithmic: bool = False,
    mark: float | None = None,
) -> str:
    """Draw several named lines over a common x axis.

    Args:
        x: Values on the x axis.
        values: Values of each line by its name.
        title: Title of the plot.
        x_label: Label of the x axis.
        logarithmic: Whether the x axis is logarithmic.
        mark: Position of a vertical line on the x axis.
    """
    figure, axes = _figure(6.0, 2.6)
    for index, (name, y) in enumerate(values.items()):
        axes.plot(x, y, color=COLORS[index % len(COLORS)], linewidth=1.5, label=_plain(name))
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=1, linestyle="--")
    if logarithmic:
        axes.set_xscale("log")
    if len(values) > 1:
        axes.legend(fontsize=8, frameon=False)
    _label(axes, title=title, x_label=x_label)
    return _svg(figure)


def learning_curves(
    lines: Sequence[tuple[Sequence[float], str | None, bool]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Draw learning curves of different lengths over epochs from 1.

    Args:
        lines: Values, name and whether it is gray, of each curve; the legend shows those with a
            name.
        title: Title of the plot.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
    """
    figure, axes = _figure(6.0, 4.4)
    named = 0
    for values, name, gray in lines:
        style: dict[str, Any] = {"color": LINE if gray else ACCENT, "linewidth": 1.0, "zorder": 1}
        if name is not None:
            style |= {"color": COLORS[named], "linewidth": 2.2, "label": _plain(name), "zorder": 3}
            named += 1
        elif not gray:
            style |= {"alpha": 0.5, "zorder": 2}
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if named:
        axes.legend(fontsize=8, frameon=False)
    _label(axes, title=title, x_label=x_label, y_label=y_label)
    return _svg(figure)


def dot_plot(
    points: Sequence[tuple[float, float, bool]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
) -> str:
    """Draw a scatter plot of accented and gray points.

    Args:
        points: x, y and whether it is gray, of each point.
        title: Title of the plot.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        logarithmic: Whether the x axis is logarithmic.
    """
    figure, axes = _figure(6.0, 2.6)
    for gray in (True, False):
        x = [value for value, _, is_gray in points if is_gray == gray]
        y = [value for _, value, is_gray in points if is_gray == gray]
        axes.scatter(x, y, s=26, color=LINE if gray else ACCENT, linewidths=0)
    if logarithmic:
        axes.set_xscale("log")
    _label(axes, title=title, x_label=x_label, y_label=y_label)
    return _svg(figure)
