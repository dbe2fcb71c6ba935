"""Every listening port of every host of a cluster, called with no, a wrong and the right token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.hosts import Host, Listener
from tests.support.hosted import Hosted

PROBE = Path(__file__).parents[1] / "support/port_probe.py"
REFUSED = {"401", "403", "UNAUTHENTICATED"}
"""Responses to a caller without the right token."""
NOT_THERE = {"404", "405", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "closed"}
"""Responses to what a server does not have, or no response."""
HEALTH = {
    "/grpc.health.v1.Health/Check",
    "GET /api/gcs_healthz",
    "GET /api/healthz",
    "GET /api/local_raylet_healthz",
}
"""What anybody may ask: whether it lives."""
PAGE = {"GET /", "GET /favicon.ico", "GET /api/authentication_mode"}
"""What the dashboard shows anybody on the head: its empty page, and that it needs a token."""
METRICS = ("autoscaler/_private", "autoscaler/v2", "dashboard/dashboard.py", "ray::DashboardAgent")
"""Processes with a port of counters, which needs no token."""


@dataclass(frozen=True)
class Called:
    """A port, and what it responded.

    Attributes:
        host: Host that it is on.
        port: The port.
        responses: Names of paths and methods by protocol, token and status.
    """

    host: Host
    port: Listener
    responses: dict[str, dict[str, dict[str, list[str]]]]

    @property
    def has_counters(self) -> bool:
        """Whether it is one of the ports that serve counters to everybody."""
        open_to_all = self.responses["http"]["none"].get("200", [])
        return "GET /-/routes" in open_to_all and any(one in self.port.process for one in METRICS)

    def rows(self) -> Iterator[str]:
        """Yield the rows of a table: port, process, protocol, token, and how often which status."""
        for protocol, by_token in self.responses.items():
            for token, found in by_token.items():
                counts = ", ".join(f"{status} {len(names)}" for status, names in found.items())
                where = f"{self.host.name} | {self.port.address}:{self.port.port}"
                if counts:
                    yield f"| {where} | {self.port.process[:40]} | {protocol}, {token} | {counts} |"

    def allowed(self, token: str) -> set[str]:
        """Return what it did for a caller with no or a wrong token."""
        by_status = [self.responses[protocol][token] for protocol in ("http", "grpc")]
        return {
            name
            for found in by_status
            for status, names in found.items()
            if status not in REFUSED | NOT_THERE
            for name in names
        }


@pytest.fixture(scope="module")
def calls(hosted: Hosted) -> list[Called]:
    """Call what other hosts reach from the client's host, and ports on loopback from their own."""
    cluster = hosted.cluster
    nodes = [cluster.head, *cluster.workers]
    found = [(host, port) for host in nodes for port in host.listening()]
    ports = [(host, port) for host, port in found if "sshd" not in port.process]
    called = []
    for caller in (cluster.client, *nodes):
        chosen = [
            (host, port)
            for host, port in ports
            if (caller == host if port.on_loopback else caller == cluster.client)
        ]
        at = [("127.0.0.1" if p.on_loopback else h.address, p.port) for h, p in chosen]
        called += [
            Called(host, port, responses)
            for (host, port), responses in zip(chosen, probe(hosted, caller, at), strict=True)
        ]
    print(*(row for one in called for row in one.rows()), sep="\n")
    return called


def probe(hosted: Hosted, caller: Host, ports: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Call ports from a host."""
    request = json.dumps({"ports": ports, "token": hosted.cluster.token})
    said = caller.run(
        *("python", "-P", str(PROBE)),
        stdin=request,
        seconds=400,
        RAY_AUTH_MODE="disabled",
        PYTHONPATH="",
    )
    found: list[dict[str, Any]] = json.loads(said.stdout)
    return found


def test_without_the_token_only_health_and_counters_are_to_be_had(
    hosted: Hosted, calls: list[Called]
) -> None:
    for called in calls:
        where = f"{called.host.name} {called.port}"
        for token in ("none", "wrong"):
            if not called.has_counters:
                page = PAGE if called.port.on_loopback else set()
                assert called.allowed(token) <= HEALTH | page, where
    assert hosted.cluster.num_nodes() == 4  # and the cluster has survived it


def test_with_the_token_they_respond(calls: list[Called]) -> None:
    by_process = {"gcs_server": "grpc", "raylet/raylet": "grpc", "dashboard.py": "http"}
    for process, protocol in by_process.items():
        right = [
            one.responses[protocol]["right"]
            for one in calls
            if process in one.port.process and not one.has_counters
        ]
        assert any(found.get("OK") or found.get("200") for found in right), process


def test_the_job_server_is_on_loopback_only(calls: list[Called]) -> None:
    job_servers = [one for one in calls if one.port.port == 8265]
    assert [(one.host.name, one.port.address) for one in job_servers] == [("head", "127.0.0.1")]


def test_ports_with_counters_are_those_that_the_operators_page_names(calls: list[Called]) -> None:
    open_ports = Counter(one.host.name for one in calls if one.has_counters)
    assert open_ports == {"head": 3, "worker-1": 1, "worker-2": 1, "worker-3": 1}
    assert {one.port.port for one in calls if one.has_counters} >= {8080, 44217, 44227}
