"""Every listening port of every host of a cluster, called with no, a wrong and the right token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.hosts import Host, Listener
from tests.support.hosted import Hosted

PROBE = Path(__file__).parents[1] / "support/port_probe.py"
TOKENS = ("none", "wrong", "right")
REFUSED = {"401", "403", "UNAUTHENTICATED"}
"""Answers of who needs a token, to whom has none or a wrong one."""
NOT_THERE = {"404", "405", "UNIMPLEMENTED", "closed"}
"""Answers to what a server does not have."""


def probe(hosted: Hosted, caller: Host, ports: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Call ports from a host."""
    request = json.dumps({"ports": ports, "token": hosted.cluster.token})
    words = ["python", "-P", str(PROBE)]
    variables: dict[str, Any] = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": ""}
    said = caller.run(*words, stdin=request, seconds=400, **variables)
    found: list[dict[str, Any]] = json.loads(said.stdout)
    return found


@pytest.fixture(scope="module")
def answers(hosted: Hosted) -> list[tuple[Host, Listener, dict[str, Any]]]:
    """Call what other hosts can reach from the client's host, and the rest from its own."""
    cluster = hosted.cluster
    found: list[tuple[Host, Listener, dict[str, Any]]] = []
    outside: list[tuple[Host, Listener]] = []
    inside: dict[str, list[tuple[Host, Listener]]] = {}
    for host in (cluster.head, cluster.workers[0]):
        for port in host.listening():
            if "sshd" in port.process:
                continue
            if port.on_loopback:
                inside.setdefault(host.name, []).append((host, port))
            else:
                outside.append((host, port))
    calls = probe(hosted, cluster.client, [(host.address, port.port) for host, port in outside])
    found += [(host, port, call) for (host, port), call in zip(outside, calls, strict=True)]
    for ports in inside.values():
        host = ports[0][0]
        calls = probe(hosted, host, [("127.0.0.1", port.port) for _, port in ports])
        found += [(host, port, call) for (_, port), call in zip(ports, calls, strict=True)]
    return found


def test_table(answers: list[tuple[Host, Listener, dict[str, Any]]]) -> None:
    for line in table(answers):
        print(line)


def table(answers: list[tuple[Host, Listener, dict[str, Any]]]) -> Iterator[str]:
    for host, port, call in answers:
        yield f"{host.name} {port.address}:{port.port} {port.process[:100]}"
        for protocol, by_token in call.items():
            for token in TOKENS:
                for status, names in by_token[token].items():
                    shown = ", ".join(names[:4])
                    yield f"    {protocol} {token}: {status} x {len(names)}: {shown}"
