"""The URLs that webhooks may have: of any host, whose addresses are public or allowed."""

from __future__ import annotations

from collections.abc import Sequence

from eagleray.io.http import UrlPolicy

__all__ = ["webhook_policy"]

_SECONDS = 5.0  # of one attempt


def webhook_policy(private_networks: Sequence[str]) -> UrlPolicy:
    """Return the policy of webhooks.

    Args:
        private_networks: CIDR blocks outside of the public internet that may be connected to.
    """
    return UrlPolicy(
        hosts=("*:*",),
        private_networks=tuple(private_networks),
        max_redirects=0,
        connect_seconds=_SECONDS,
        read_seconds=_SECONDS,
        total_seconds=_SECONDS,
    )
