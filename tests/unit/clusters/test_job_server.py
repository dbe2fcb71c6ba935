"""The job server's client against a server that answers wrongly, slowly or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from eagleray.clusters import job_server
from eagleray.clusters.job_server import JobServer
from eagleray.core.errors import OutageError, UnknownNameError, UserError
from eagleray.core.system import free_port
from tests.support.stub_server import Answer, Sent, stub_server


@contextmanager
def answering(status: int, body: str = "", **headers: str) -> Iterator[tuple[JobServer, list[str]]]:
    """Run a server that gives every request one answer; yield its client and the tokens it saw."""
    tokens: list[str] = []

    def answer(sent: Sent) -> Answer:
        tokens.append(sent.headers["authorization"])
        return Answer(status, body.encode(), headers)

    with stub_server(answer) as server:
        yield JobServer(server.url, "abc"), tokens


def test_a_wrong_token_is_told() -> None:
    with answering(401) as (server, tokens), pytest.raises(UserError, match="refuses the token"):
        server.ray_version()
    assert tokens == ["Bearer abc"]


def test_a_head_that_does_not_answer_is_told() -> None:
    port = free_port()
    with pytest.raises(
        OutageError, match=rf"No job server of Ray answers at http://127\.0\.0\.1:{port}"
    ):
        JobServer(f"http://127.0.0.1:{port}", "abc").ray_version()


def test_the_token_does_not_follow_a_redirect() -> None:
    with (
        answering(200, '{"ray_version": "1"}') as (_, tokens),
        answering(302, Location="http://127.0.0.1:1/") as (server, _),
        pytest.raises(UserError, match="status 302"),
    ):
        server.ray_version()
    assert tokens == []


def test_another_server_is_told() -> None:
    with (
        answering(404, "<html>") as (server, _),
        pytest.raises(UserError, match=r"status 404 .* the head of a Ray cluster"),
    ):
        server.ray_version()


def test_an_unknown_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server.JobServer, "jobs", lambda _: [])
    with answering(404) as (server, _), pytest.raises(UnknownNameError, match="No job is named"):
        server.job("predict-1")
