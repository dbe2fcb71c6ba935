"""Templates to HTML. Everything is escaped; a page refers to nothing outside itself.

No text can be shown in another order than it is written in, and none hides a character.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from eagleray.core.display import escape_text

__all__ = ["render_page"]


def render_page(template: str, **values: Any) -> bytes:
    """Render a template of `pages/templates` as the bytes of an HTML file.

    Args:
        template: Its file name.
        values: What it refers to; text is escaped, `Markup` (plots) is not.
    """
    environment = Environment(
        loader=PackageLoader("eagleray.reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(template).render(**values).encode()


def _shown(value: object) -> object:
    """Return what a template prints of a value."""
    if not isinstance(value, str):
        return value
    text = escape_text(value, keep="\n\t")
    return Markup(text) if isinstance(value, Markup) else text  # noqa: S704 — as it was
