"""HTTP servers for the tests of fetching."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from eagleray.io.http import connections
from tests.support.http_site import (
    Site,
    SixSite,
    running,
)


@pytest.fixture
def site() -> Iterator[Site]:
    with running(Site()) as server:
        server.serves("/a.jpg", b"image")
        yield server


@pytest.fixture(scope="module")
def everywhere() -> Iterator[list[Site]]:
    """Servers on one port of every address of this machine, IPv6 too where it is there."""
    with ExitStack() as stack:
        sites = [stack.enter_context(running(Site("0.0.0.0")))]
        if socket.has_ipv6:
            with suppress(OSError):
                sites.append(stack.enter_context(running(SixSite("::", sites[0].port))))
        yield sites


@pytest.fixture(autouse=True)
def fresh_connections() -> Iterator[None]:
    """No connections of another test."""
    connections._pools.cache_clear()
    yield
    connections._pools.cache_clear()
