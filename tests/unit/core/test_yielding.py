"""How a job is asked to yield: by several at once, by signals, and for a turn at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from eagleray.core.yielding import (
    PERSON,
    QUEUE,
    Turn,
    YieldSignal,
    process_signal,
    yield_on_signals,
)


def test_those_who_ask_do_not_undo_each_others_requests() -> None:
    asked = YieldSignal()
    assert not asked.requested
    asked.request()
    asked.request(PERSON)
    asked.clear()
    assert (asked.requested, asked.reason) == (True, PERSON)
    asked.clear(PERSON)
    asked.clear(PERSON)
    assert (asked.requested, asked.reason) == (False, "")
    asked.wait()  # ends at once


def test_a_turn_that_is_over_stays_over() -> None:
    asked = YieldSignal()
    turn = Turn(asked)
    assert not turn.over
    asked.request(QUEUE)
    assert turn.over
    asked.clear(QUEUE)
    assert turn.over
    assert not Turn(asked).over


@pytest.fixture
def _handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    process_signal().clear()


@pytest.mark.usefixtures("_handlers_restored")
def test_signals_ask_the_job_of_a_process() -> None:
    yield_on_signals()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert process_signal().requested
    os.kill(os.getpid(), signal.SIGUSR2)
    assert not process_signal().requested
