"""Pages that people look at: self-contained HTML with pictures and SVG plots inside."""

from eagleray.pages.plots import curves, histogram, horizontal_bars, line
from eagleray.pages.render import render_page
from eagleray.pages.thumbnails import thumbnail

__all__ = ["curves", "histogram", "horizontal_bars", "line", "render_page", "thumbnail"]
