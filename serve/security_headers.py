"""Security headers of every response, for browsers."""

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
    "cache-control": "no-store",  # responses that need a key are not cached
}
"""Names and values of headers; pages that load resources have a policy of their own."""
