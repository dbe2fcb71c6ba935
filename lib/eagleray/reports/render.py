"""Renders HTML templates; all text is escaped, and pages load nothing from elsewhere.

Bidirectional overrides and invisible characters are escaped too.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from eagleray.core.display import escape_text

__all__ = ["render_page"]


def render_page(template: str, **values: Any) -> bytes:
    """Render a template of `reports/templates` to the bytes of an HTML file.

    Args:
        template: File name of the template.
        values: Its variables; text is escaped, `Markup` (plots) is not.
    """
    environment = Environment(
        loader=PackageLoader("eagleray.reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(template).render(**values).encode()


def _finalize(value: object) -> object:
    """Return the printed form of a value."""
    if not isinstance(value, str):
        return value
    text = escape_text(value, keep="\n\t")
    return Markup(text) if isinstance(value, Markup) else text  # noqa: S704 — it was `Markup` before
