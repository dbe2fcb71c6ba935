"""How many inputs may fail before a job stops."""

from __future__ import annotations

import pytest

from eagleray.core.errors import JobFailedError
from eagleray.sharded.failure_limit import FailureLimit


@pytest.mark.parametrize(
    ("text", "failed", "rows", "allowed"),
    [
        ("1%", 10, 1000, True),
        ("1%", 11, 1000, False),
        ("0%", 0, 5, True),
        ("0%", 1, 5, False),
        ("100%", 5, 5, True),
        (" 0.5 % ", 1, 200, True),
        (" 0.5 % ", 2, 200, False),
        ("200", 200, 10**7, True),
        ("200", 201, 10**7, False),
        ("0", 1, 10, False),
    ],
)
def test_a_limit_of_failures_is_a_share_or_a_number(
    text: str, failed: int, rows: int, allowed: bool
) -> None:
    assert FailureLimit.parse(text).allows(failed, rows) is allowed


def test_without_a_limit_all_may_fail() -> None:
    assert FailureLimit().allows(10, 10)


@pytest.mark.parametrize(
    "text", ["", "%", "some", "101%", "-1%", "nan%", "inf%", "1.5", "-3", "1e2", "1%%"]
)
def test_what_is_no_limit_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="write a share such as 1%, or a number such as 200"):
        FailureLimit.parse(text)


def test_a_limit_that_is_exceeded_stops_a_job_and_names_it() -> None:
    limit = FailureLimit(number=2)
    limit.check(2, 5, 10, "3f9c")
    with pytest.raises(JobFailedError, match=r"3 of 5 images failed so far.*jobs show 3f9c"):
        limit.check(3, 5, 10, "3f9c")
