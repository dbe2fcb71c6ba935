"""What a process may use of its machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from eagleray.core import system
from eagleray.core.system import free_port, num_usable_cores


@pytest.mark.parametrize("text", ["max 100000\n", "", "a b", "6400000 100000\n"])
def test_without_a_lower_quota_all_cores_are_usable(tmp_path: Path, text: str) -> None:
    quota = tmp_path / "cpu.max"
    unlimited = num_usable_cores(quota)
    assert unlimited >= 1
    quota.write_text(text)
    assert num_usable_cores(quota) == unlimited


def test_a_container_uses_no_more_cores_than_its_quota_pays_for(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    for text in ("100000 100000\n", "199999 100000\n", "50000 100000\n"):
        quota.write_text(text)
        assert num_usable_cores(quota) == 1


def test_a_process_gets_each_free_port_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_LISTENING_PORTS", range(21_000, 21_040))
    monkeypatch.setattr(system, "_returned_ports", set())
    found = [free_port() for _ in range(20)]
    assert len(set(found)) == 20
    assert set(found) <= set(range(21_000, 21_040))


def test_a_free_port_is_none_that_connections_get() -> None:
    port = free_port()
    assert port < 32_768
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        assert free_port() != port
