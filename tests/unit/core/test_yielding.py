"""How a job is asked to yield: by several at once, and for a turn at a time."""

from __future__ import annotations

from eagleray.core.yielding import PERSON, QUEUE, Turn, YieldSignal


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
    over = [turn.over]
    asked.request(QUEUE)
    over.append(turn.over)
    asked.clear(QUEUE)
    over.append(turn.over)
    assert over == [False, True, True]
    assert not Turn(asked).over
