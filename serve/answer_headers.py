"""What every answer tells browsers, so that they take it for no more than it is."""

from __future__ import annotations

__all__ = ["SAFE_HEADERS"]

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # what is behind a key is kept by nobody else
}
"""Names and values of headers; a page that loads something says so in a policy of its own."""
