"""Small plots as SVG text, drawn by matplotlib without a display or global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["curves", "histogram", "horizontal_bars", "line"]

INK, ACCENT = "#1f2a37", "#1f6f8b"
COLORS = (ACCENT, "#c8553d", "#588157", "#7a5195", "#b08900")


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
    """Keep matplotlib from reading a label's dollar signs as mathematics."""
    return text.replace("$", r"\$")


def horizontal_bars(names: Sequence[str], counts: Sequence[int], *, title: str) -> str:
    """Draw one bar for each name, first on top, with its count beside it."""
    figure, axes = _figure(6.0, 0.5 + 0.26 * max(len(names), 1))
    positions = range(len(names))
    bars = axes.barh(positions, counts, color=ACCENT)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=8)
    axes.set_yticks(positions, labels=[_plain(name[:40]) for name in names])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["bottom"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    return _svg(figure)


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, label: str) -> str:
    """Draw counts between edges."""
    figure, axes = _figure(6.0, 2.6)
    axes.stairs(counts, edges, fill=True, color=ACCENT)
    axes.set_xlabel(label, fontsize=8, color=INK)
    axes.set_ylabel("images", fontsize=8, color=INK)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    return _svg(figure)


def line(x: Sequence[float], y: Sequence[float], *, title: str, x_label: str, y_label: str) -> str:
    """Draw y over x, from zero."""
    figure, axes = _figure(6.0, 2.6)
    axes.plot(x, y, color=ACCENT, linewidth=1.6, marker=".", markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label, fontsize=8, color=INK)
    axes.set_ylabel(y_label, fontsize=8, color=INK)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    return _svg(figure)


def curves(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    logarithmic: bool = False,
    mark: float | None = None,
) -> str:
    """Draw several lines over x, each with its name.

    Args:
        x: Shared by all.
        series: Values of each line by its name.
        title: Of the plot.
        x_label: What x is.
        logarithmic: Scale x by powers of ten.
        mark: Place on x that is pointed out.
    """
    figure, axes = _figure(6.0, 2.6)
    for index, (name, values) in enumerate(series.items()):
        axes.plot(x, values, color=COLORS[index % len(COLORS)], linewidth=1.5, label=_plain(name))
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=1, linestyle="--")
    if logarithmic:
        axes.set_xscale("log")
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel(x_label, fontsize=8, color=INK)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    return _svg(figure)
