"""A service that cannot be started says why."""

from __future__ import annotations

import pytest
from ray import serve

from eagleray.errors import JobFailedError
from eagleray.serve.run import Place, start
from eagleray.serving.config import ServiceConfig


def test_a_proxy_that_does_not_come_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(**_: object) -> None:
        raise TimeoutError("HTTP proxies not available after 60s.")  # as Ray Serve's own

    monkeypatch.setattr(serve, "start", give_up)
    with pytest.raises(JobFailedError, match=r"after 60s\.\); the machine may be too busy"):
        start(ServiceConfig(), Place("127.0.0.1", 8000, 8001))
