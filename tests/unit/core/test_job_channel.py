"""The channel between a command and the process that runs it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from eagleray.core.job_channel import (
    HELD,
    VARIABLE,
    JobChannel,
    process_channel,
    process_is_held,
    read_messages,
)


@pytest.fixture
def pair() -> Iterator[tuple[JobChannel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield JobChannel(ours), theirs


def test_a_command_reports(pair: tuple[JobChannel, socket.socket]) -> None:
    channel, other = pair
    channel.progress("Predicting", 1, 0, 10)
    channel.progress("Predicting", 2, 0, 10)  # too soon after the first
    channel.progress("Predicting", 10, 3, 10)  # the end is always told
    channel.hold(cores=4, gpus=1)
    with channel.able_to_yield():
        channel.yielded()
    messages = read_messages(other)
    assert [next(messages) for _ in range(6)] == [
        {"stage": "Predicting", "done": 1, "failed": 0, "total": 10},
        {"stage": "Predicting", "done": 10, "failed": 3, "total": 10},
        {"cores": 4, "gpus": 1},
        {"can_yield": True},
        {"yielded": True},
        {"can_yield": False},
    ]


def test_requests_arrive(pair: tuple[JobChannel, socket.socket]) -> None:
    channel, other = pair
    asked, resumed = threading.Event(), threading.Event()
    channel.listen(on_yield=asked.set, on_resume=resumed.set)
    other.sendall(b"nonsense\n" + json.dumps({"request": "yield"}).encode() + b"\n")
    assert asked.wait(10)
    assert not resumed.is_set()
    other.sendall(json.dumps({"request": "resume"}).encode() + b"\n")
    assert resumed.wait(10)


def test_a_command_that_is_held_is_told_to_start(
    pair: tuple[JobChannel, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HELD, "1")
    assert process_is_held()
    assert not process_is_held()  # the processes that it starts are not held
    channel, other = pair
    resumed, started = threading.Event(), threading.Event()
    channel.listen(on_yield=resumed.set, on_resume=resumed.set, on_start=started.set)
    other.sendall(b'{"request": "start"}\n')
    assert started.wait(10)
    assert not resumed.is_set()


def test_a_command_goes_on_when_the_other_end_is_gone(
    pair: tuple[JobChannel, socket.socket],
) -> None:
    channel, other = pair
    other.close()
    channel.yielded()
    assert list(read_messages(channel._socket or other)) == []


def test_a_command_that_nobody_runs_has_no_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    process_channel.cache_clear()
    monkeypatch.setenv(VARIABLE, "999999")  # the descriptor is not open
    process_channel().progress("Predicting", 1, 0, 1)
    process_channel.cache_clear()
