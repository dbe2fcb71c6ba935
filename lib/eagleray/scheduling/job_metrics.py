"""Counts submitted jobs for Prometheus: how many are in each state, and how long they wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from eagleray.core.job_state import RECOVERABLE_STATES, JobState
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import JobRow

__all__ = ["JobCounts", "count_jobs"]

_RECENT = timedelta(days=1)


@dataclass(frozen=True)
class JobCounts:
    """The jobs of an organisation at one moment.

    Attributes:
        jobs: Number of jobs by command and state: all that have not ended or are lost, and those
            that have ended within a day.
        waiting_seconds: Time since the oldest job that waits to start was submitted; 0 if none
            does.
    """

    jobs: Mapping[tuple[str, str], int]
    waiting_seconds: float


def count_jobs(database: OpenDatabase, *, now: datetime | None = None) -> JobCounts:
    """Count the jobs in a database.

    Args:
        database: The organisation's database.
        now: The time; None for the clock's.

    Raises:
        UserError: If the database does not answer.
    """
    now = now or datetime.now(UTC)
    lapsed = sa.and_(JobRow.state == JobState.RUNNING.value, JobRow.lease_until < now)
    state = sa.case((lapsed, JobState.LOST.value), else_=JobRow.state)
    counted = sa.or_(JobRow.state.in_(RECOVERABLE_STATES), JobRow.ended > now - _RECENT)
    counts = (
        sa.select(JobRow.program, state, sa.func.count())
        .where(counted)
        .group_by(JobRow.program, state)
    )
    waits = sa.and_(JobRow.state == JobState.QUEUED.value, JobRow.started.is_(None))
    oldest = sa.select(JobRow.created).where(waits).order_by(JobRow.created).limit(1)
    with database.reading() as session:
        jobs = {(program, found): count for program, found, count in session.execute(counts)}
        created = session.scalars(oldest).first()
    return JobCounts(jobs, 0.0 if created is None else (now - created).total_seconds())
