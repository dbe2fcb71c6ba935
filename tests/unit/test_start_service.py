"""A service that cannot be started says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve
from ray.exceptions import RayError

from eagleray.errors import JobFailedError, UserError
from eagleray.serve import run
from eagleray.serve.run import Place, folder_for_sockets, start
from eagleray.serving.config import ServiceConfig


def test_a_proxy_that_does_not_come_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(**_: object) -> None:
        raise TimeoutError("HTTP proxies not available after 60s.")  # as Ray Serve's own

    monkeypatch.setattr(serve, "start", give_up)
    with pytest.raises(JobFailedError, match=r"after 60s\.\); the machine may be too busy"):
        start(ServiceConfig(), Place("127.0.0.1", 8000, 8001))


def test_a_proxy_that_dies_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(**_: object) -> None:
        raise RayError("a traceback\nPermissionError: Permission denied: '/tmp/x'")

    monkeypatch.setattr(serve, "start", die)
    with pytest.raises(JobFailedError, match=r"^The service does not start: .*Permission denied"):
        start(ServiceConfig(), Place("127.0.0.1", 8000, 8001))


def test_each_service_has_a_folder_of_its_own_for_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with folder_for_sockets() as one, folder_for_sockets() as other:
        assert one != other
        assert Path(one).stat().st_mode & 0o777 == 0o700
        # Ray adds the node's id, and HAProxy a number while it makes a socket.
        assert len(f"{one}/{'0' * 56}/admin.sock.4194304.tmp") <= 107
    assert not Path(one).exists()
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "_TEMPORARY", str(tmp_path / "file"))
    with pytest.raises(UserError, match="which cannot be made"):
        folder_for_sockets()
