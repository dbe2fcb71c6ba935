"""Renders reports: self-contained HTML pages with thumbnails and SVG plots."""

from eagleray.reports.drawing import drawn_pictures
from eagleray.reports.plots import (
    bar_chart,
    confusion_matrix,
    curves,
    dot_plot,
    histogram,
    learning_curves,
    line,
    scatter,
    series,
)
from eagleray.reports.render import render_page
from eagleray.reports.thumbnails import thumbnail, thumbnails

__all__ = [
    "bar_chart",
    "confusion_matrix",
    "curves",
    "dot_plot",
    "drawn_pictures",
    "histogram",
    "learning_curves",
    "line",
    "render_page",
    "scatter",
    "series",
    "thumbnail",
    "thumbnails",
]
