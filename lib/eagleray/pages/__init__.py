"""Pages that people look at: self-contained HTML with pictures and SVG plots inside."""

from eagleray.pages.plots import (
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
from eagleray.pages.render import render_page
from eagleray.pages.thumbnails import thumbnail, thumbnails

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
