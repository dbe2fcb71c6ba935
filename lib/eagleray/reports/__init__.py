"""Pages that people look at: self-contained HTML with pictures and SVG plots inside."""

from eagleray.reports.plots import (
    confusion,
    curves,
    dots,
    histogram,
    horizontal_bars,
    line,
    progress,
    scatter,
    series,
)
from eagleray.reports.render import render_page
from eagleray.reports.thumbnails import thumbnail, thumbnails

__all__ = [
    "confusion",
    "curves",
    "dots",
    "histogram",
    "horizontal_bars",
    "line",
    "progress",
    "render_page",
    "scatter",
    "series",
    "thumbnail",
    "thumbnails",
]
