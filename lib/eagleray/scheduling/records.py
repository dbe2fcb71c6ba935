"""The records of submitted jobs in the organisation's database, and the lease of each.

    records = JobRecords(open_database(settings), settings)
    records.add(new_job(id="predict-3f9c2a71", program="predict", owner="ada@laptop", …))
    epoch = records.claim("predict-3f9c2a71", submission)        the process that runs it
    orders = records.beat("predict-3f9c2a71", epoch, Report(…))  every few seconds
    records.end("predict-3f9c2a71", epoch, JobState.SUCCEEDED)

Every change after the claim names the epoch, so a process whose job was given to another one can
change nothing. A job that runs and whose lease has ended is lost, whatever Ray says of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.job_state import ACTIVE_STATES, RECOVERABLE_STATES, JobState
from eagleray.core.settings import Settings
from eagleray.database.connection import lock_for_transaction
from eagleray.database.store import OpenDatabase
from eagleray.database.tables import JobRow, UtcTime
from eagleray.scheduling.assignment import next_submission
from eagleray.scheduling.logs import log_folder
from eagleray.scheduling.queue import Decision, QueueEntry, Usage, decide

__all__ = [
    "START_SECONDS",
    "UNQUEUED",
    "JobRecords",
    "Orders",
    "Report",
    "Turn",
    "new_job",
    "submission_name",
]

START_SECONDS: Final = 120.0
"""Time that the process of a submitted job has to start and to claim it."""

UNQUEUED: Final = frozenset({"doctor"})
"""Commands that run at once."""

_LOST: Final = "Its process has sent no sign of life since {:%Y-%m-%d %H:%M:%S} UTC."
_MAX_MESSAGE: Final = 1000
_USAGE_WINDOW: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Report:
    """What the process that runs a job says with each sign of life.

    Attributes:
        stage: What it is doing, such as `Predicting`.
        num_done: Number of units that are done.
        num_failed: Number of these that failed.
        num_total: Number of units; None while it is unknown.
        can_yield: Whether it is able to make room for another job now.
        core_seconds: Core-seconds held since the last report.
        gpu_seconds: GPU-seconds held since the last report.
        resumed_by: Command line that resumes what it has done so far; () if its own does.
    """

    stage: str = ""
    num_done: int = 0
    num_failed: int = 0
    num_total: int | None = None
    can_yield: bool = False
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    resumed_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Orders:
    """What the process that runs a job is to do.

    Attributes:
        cancel: End the command; what is done is kept.
        yields: Make room for another job.
    """

    cancel: bool
    yields: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether it is a job's turn to run.

    Attributes:
        admitted: Whether it runs from now on.
        position: Its position in the queue otherwise, from 1.
        parked: Whether it is so far behind that no process should wait for it.
        expected: Whether another job makes room for it.
    """

    admitted: bool
    position: int = 0
    parked: bool = False
    expected: bool = False


def new_job(**fields: Any) -> JobRow:
    """Return the record of a new job that waits; fields that are left out have their defaults.

    Args:
        fields: Columns of `JobRow`; `id`, `program` and `owner` are required.
    """
    texts = ("model", "package", "version", "output", "logs", "cluster", "submission", "message")
    numbers = ("priority", "retries", "epoch", "num_done", "num_failed")
    defaults: dict[str, Any] = {
        **dict.fromkeys((*texts, "stage", "yields_to"), ""),
        **dict.fromkeys(numbers, 0),
        **dict.fromkeys(("core_seconds", "gpu_seconds"), 0.0),
        **dict.fromkeys(("cancel_requested", "can_yield", "yielded"), False),
        "words": [],
        "request": {},
        "s3": {},
        "created": datetime.now(UTC),
        "state": JobState.QUEUED.value,
        "retries_left": fields.get("retries", 0),
    }
    return JobRow(**{**defaults, **fields})


def submission_name(row: JobRow) -> str:
    """Return a name for the next attempt of a job on its cluster."""
    return next_submission(row.id, row.submission)


class JobRecords:
    """The records of jobs; methods block on the database.

    Args:
        database: The organisation's database.
        settings: Time of a lease, number of jobs at a time, and the name of the cluster.
    """

    def __init__(self, database: OpenDatabase, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._lease = timedelta(seconds=settings.lease_seconds)

    @property
    def place(self) -> str:
        """The location of the database, without a password."""
        return self._database.database.place

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        """The condition of the jobs of this cluster."""
        return JobRow.cluster == self._settings.cluster_name

    # --- find ---

    def get(self, job: str) -> JobRow:
        """Return a job by its id or the first characters of it; a lapsed lease makes it lost.

        Raises:
            UnknownNameError: If there is none.
            InputError: If several ids begin so.
        """
        with self._database.reading() as session:
            row = session.get(JobRow, job) or _beginning_with(session, job)
            now = _now(session)
        return self._with_lost([row], now)[0]

    def find(self, job: str) -> JobRow | None:
        """Return a job by its id or the first characters of it; None if there is none."""
        try:
            return self.get(job)
        except UnknownNameError:
            return None

    def recent(self, *conditions: sa.ColumnElement[bool], limit: int = 1000) -> list[JobRow]:
        """Return jobs, newest first; those whose lease has lapsed are lost.

        Args:
            conditions: Conditions on the columns of `JobRow`.
            limit: Maximum number of jobs.
        """
        query = sa.select(JobRow).where(*conditions).order_by(JobRow.created.desc()).limit(limit)
        with self._database.reading() as session:
            rows, now = list(session.scalars(query)), _now(session)
        return self._with_lost(rows, now)

    def _with_lost(self, rows: list[JobRow], now: datetime) -> list[JobRow]:
        lost = [row for row in rows if _has_lapsed(row, now)]
        for row in lost:
            self._store_lost(row)
        return rows

    def _store_lost(self, row: JobRow) -> None:
        """Mark a job as lost, unless it has given a sign of life meanwhile."""
        with self._database.session() as session:
            now = _now(session)
            current = session.get(JobRow, row.id, with_for_update=True)
            if current is not None and _has_lapsed(current, now):
                last = current.heartbeat or current.created
                if current.cancel_requested:
                    _end(current, JobState.CANCELLED, now)
                else:
                    current.state, current.message = JobState.LOST.value, _LOST.format(last)
                    current.can_yield, current.yields_to = False, ""
            if current is not None:
                row.state, row.message = current.state, current.message

    def has_process(self, row: JobRow) -> bool:
        """Whether a process waits with a job or runs it, or has the time to start."""
        with self._database.reading() as session:
            return _is_held(row, _now(session))

    def positions(self) -> dict[str, int]:
        """Return the position in the queue of each job that waits, from 1."""
        with self._database.reading() as session:
            decision = self._decide(session, _now(session))
        return {job: number for number, job in enumerate(decision.waiting, 1)}

    def without_process(self) -> list[JobRow]:
        """Return the jobs of this cluster that a supervisor is to submit again now.

        These are lost ones with retries left, and those at the front of the queue that no process
        waits for.
        """
        lost = sa.and_(JobRow.state == JobState.LOST.value, JobRow.retries_left > 0)
        active = JobRow.state.in_(ACTIVE_STATES)
        with self._database.reading() as session:
            now = _now(session)
            rows = list(session.scalars(sa.select(JobRow).where(self._mine, lost | active)))
            parked = self._decide(session, now).parked
        rows = self._with_lost(rows, now)
        return [
            row
            for row in sorted(rows, key=lambda row: row.created)
            if (row.state == JobState.LOST and row.retries_left)
            or (row.state == JobState.QUEUED and not _is_held(row, now) and row.id not in parked)
        ]

    # --- submit ---

    def add(self, row: JobRow) -> JobRow:
        """Store a new job, or return the one of its id that is there already.

        Its process has two minutes to claim it; after that it waits for a supervisor.
        """
        with self._database.session() as session:
            lock_for_transaction(session.connection(), f"job {row.id}")
            found = session.get(JobRow, row.id)
            if found is not None:
                return found
            row.cluster = row.cluster or self._settings.cluster_name
            if row.submission:
                row.lease_until = _now(session) + timedelta(seconds=START_SECONDS)
            session.add(row)
        return row

    def submit_again(
        self, row: JobRow, *, submission: str = "", takes_retry: bool = False
    ) -> JobRow | None:
        """Prepare the next attempt of a job, and return it with the name of its submission.

        Args:
            row: The job as it was read; None is returned if it has changed since.
            submission: Name of the submission; "" for the next number.
            takes_retry: Whether the attempt is one of the job's retries.

        Raises:
            InputError: If the job runs.
        """
        with self._database.session() as session:
            now = _now(session)
            current = session.get(JobRow, row.id, with_for_update=True)
            same = current is not None and (
                (current.epoch, current.submission) == (row.epoch, row.submission)
            )
            if current is None or not same:
                return None
            if _is_held(current, now):
                raise InputError(
                    f"Job {row.id} is {current.state}; attach to it, or cancel it first."
                )
            current.submission = submission or submission_name(current)
            current.state, current.message = JobState.QUEUED.value, ""
            current.lease_until = now + timedelta(seconds=START_SECONDS)
            current.ended = current.exit_code = current.heartbeat = None
            current.cancel_requested = current.yielded = current.can_yield = False
            current.yields_to = ""
            current.retries_left = (
                max(0, current.retries_left - 1) if takes_retry else current.retries_left
            )
            session.flush()
            return current

    def fail_start(self, row: JobRow, message: str) -> bool:
        """Store that the process of a job ended before it claimed the job.

        Args:
            row: The job as it was read.
            message: What the job server says of the process.

        Returns:
            Whether this is stored; not if a process has claimed the job meanwhile.
        """
        with self._database.session() as session:
            current = session.get(JobRow, row.id, with_for_update=True)
            if current is None or current.heartbeat or current.submission != row.submission:
                return False
            if current.state != JobState.QUEUED:
                return False
            _end(current, JobState.FAILED, _now(session))
            current.message = f"Its process did not start: {message}"[:_MAX_MESSAGE]
            return True

    def cancel(self, job: str) -> JobRow:
        """Ask a job to end, and return it; one that no process holds ends at once.

        Raises:
            UnknownNameError: If there is none.
            InputError: If it has ended already.
        """
        with self._database.session() as session:
            now = _now(session)
            found = session.get(JobRow, job) or _beginning_with(session, job)
            row = session.get_one(JobRow, found.id, with_for_update=True)
            if row.state not in RECOVERABLE_STATES:
                raise InputError(f"Job {row.id} has ended already: {row.state}.")
            row.cancel_requested = True
            if not _is_held(row, now):
                _end(row, JobState.CANCELLED, now)
            session.flush()
            return row

    # --- run ---

    def claim(self, job: str, submission: str) -> JobRow | None:
        """Claim a job that waits, for the process of one submission.

        Returns:
            The job, with the number of the attempt; None if it is another submission's, or has
            ended.
        """
        with self._database.session() as session:
            now = _now(session)
            row = session.get(JobRow, job, with_for_update=True)
            if row is None or row.submission != submission or row.state != JobState.QUEUED:
                return None
            row.epoch += 1
            row.cluster = self._settings.cluster_name
            row.logs = row.logs or log_folder(row, self._settings)
            row.lease_until, row.heartbeat = now + self._lease, now
            row.stage, row.message = "", ""
            if row.program in UNQUEUED:
                row.state, row.started = JobState.RUNNING.value, now
            session.flush()
            return row

    def set_size(self, job: str, size: int) -> None:
        """Store how many images a job has."""
        with self._database.session() as session:
            session.execute(sa.update(JobRow).where(JobRow.id == job).values(size=size))

    def wait_for_turn(self, job: str, epoch: int) -> Turn | None:
        """Renew the lease of a job that waits, and admit it if it is its turn.

        It also asks a running job to make room, if the waiting one should not wait for its end.

        Returns:
            Whether it runs now; None if the process has lost the job, or the job was cancelled.
        """
        with self._database.session() as session:
            lock_for_transaction(session.connection(), "queue")
            now = _now(session)
            row = session.get(JobRow, job, with_for_update=True)
            if row is not None and row.program in UNQUEUED:
                return Turn(admitted=True)
            if row is None or row.epoch != epoch or row.state != JobState.QUEUED:
                return None
            if row.cancel_requested:
                _end(row, JobState.CANCELLED, now)
                return None
            row.lease_until, row.heartbeat = now + self._lease, now
            session.flush()
            decision = self._decide(session, now)
            for running, waiting in decision.asked.items():
                session.get_one(JobRow, running).yields_to = waiting
            if job not in decision.admitted:
                position = decision.waiting.index(job) + 1
                parked = job in decision.parked and not row.yielded
                if parked:
                    row.lease_until = None
                expected = job in decision.expected
                return Turn(admitted=False, position=position, parked=parked, expected=expected)
            row.state, row.started, row.message = JobState.RUNNING.value, now, ""
            row.yielded, row.yields_to = False, ""
            return Turn(admitted=True)

    def beat(self, job: str, epoch: int, report: Report) -> Orders | None:
        """Renew the lease of a job and store what its process reports.

        Returns:
            What the process is to do; None if it has lost the job.
        """
        with self._database.session() as session:
            now = _now(session)
            row = session.get(JobRow, job, with_for_update=True)
            if row is None or row.epoch != epoch or row.state not in RECOVERABLE_STATES:
                return None
            if row.state == JobState.LOST:  # the database or this process was out of reach
                row.state, row.message = JobState.RUNNING.value, ""
            row.lease_until, row.heartbeat = now + self._lease, now
            _store(row, report)
            return Orders(cancel=row.cancel_requested, yields=bool(row.yields_to))

    def is_asked(self, job: str, epoch: int) -> bool:
        """Return whether a running job is asked to end, or to make room; changes nothing."""
        asked = sa.or_(JobRow.cancel_requested, JobRow.yields_to != "", JobRow.epoch != epoch)
        with self._database.reading() as session:
            return session.scalar(sa.select(JobRow.id).where(JobRow.id == job, asked)) is not None

    def make_room(self, job: str, epoch: int, report: Report) -> bool:
        """Store that a running job has made room, and waits again.

        Returns:
            Whether the process still has the job.
        """
        with self._database.session() as session:
            row = session.get(JobRow, job, with_for_update=True)
            if row is None or row.epoch != epoch or row.state != JobState.RUNNING:
                return False
            row.state, row.yielded = JobState.QUEUED.value, True
            row.message = "It has made room for another job, and goes on after it."
            _store(row, replace(report, core_seconds=0.0, gpu_seconds=0.0))
            return True

    def end(
        self,
        attempt: JobRow,
        state: JobState,
        *,
        exit_code: int | None = None,
        message: str = "",
        report: Report | None = None,
    ) -> bool:
        """Store how an attempt has ended.

        Args:
            attempt: The job as it was claimed.
            state: How it has ended.
            exit_code: Exit code of its command.
            message: Sentence that explains the state.
            report: The last report, if there was one since the last sign of life.

        Returns:
            Whether the process still had the job; if not, nothing is stored.
        """
        with self._database.session() as session:
            now = _now(session)
            row = session.get(JobRow, attempt.id, with_for_update=True)
            if row is None or row.epoch != attempt.epoch or row.state not in RECOVERABLE_STATES:
                return False
            if report is not None:
                _store(row, report)
            _end(row, state, now)
            row.exit_code, row.message = exit_code, message
            return True

    # --- the queue ---

    def _decide(self, session: Session, now: datetime) -> Decision:
        active = JobRow.state.in_(ACTIVE_STATES)
        queued = JobRow.program.not_in(UNQUEUED)
        rows = list(session.scalars(sa.select(JobRow).where(self._mine, active, queued)))
        entries = [_entry(row, now) for row in rows if not _has_lapsed(row, now)]
        waiting = {entry.owner for entry in entries if not entry.runs}
        usage = Usage(now) if len(waiting) < 2 else _usage(session, waiting, now)
        return decide(entries, usage, self._settings.max_concurrent_jobs, now)


def _entry(row: JobRow, now: datetime) -> QueueEntry:
    total = row.num_total if row.num_total is not None else row.size
    return QueueEntry(
        job=row.id,
        owner=row.owner,
        priority=row.priority,
        created=row.created,
        runs=row.state == JobState.RUNNING,
        has_process=_is_held(row, now) and row.heartbeat is not None,
        started=row.started,
        images_left=None if total is None else max(0, total - row.num_done),
        can_yield=row.can_yield,
        yielded=row.yielded,
        yields_to=row.yields_to,
    )


def _usage(session: Session, owners: set[str], now: datetime) -> Usage:
    usage = Usage(now)
    last = sa.func.coalesce(JobRow.ended, JobRow.heartbeat, JobRow.started, type_=UtcTime())
    columns = (JobRow.owner, last, JobRow.core_seconds, JobRow.gpu_seconds)
    query = sa.select(*columns).where(JobRow.owner.in_(owners), last > now - _USAGE_WINDOW)
    for owner, when, core_seconds, gpu_seconds in session.execute(query):
        usage.add(owner, when, core_seconds=core_seconds, gpu_seconds=gpu_seconds)
    return usage


def _store(row: JobRow, report: Report) -> None:
    row.stage, row.can_yield = report.stage[:64], report.can_yield
    row.num_done, row.num_failed = report.num_done, report.num_failed
    row.num_total = report.num_total
    row.core_seconds += report.core_seconds
    row.gpu_seconds += report.gpu_seconds
    if report.resumed_by:
        kept = [word for word in row.words if word == "--json"]
        row.words = [*report.resumed_by, *kept]


def _end(row: JobRow, state: JobState, now: datetime) -> None:
    row.state, row.ended = state.value, now
    row.lease_until, row.cancel_requested = None, False
    row.yielded, row.can_yield, row.yields_to = False, False, ""


def _is_held(row: JobRow, now: datetime) -> bool:
    """Whether a process has the job, or has the time to claim it."""
    return row.lease_until is not None and row.lease_until >= now


def _has_lapsed(row: JobRow, now: datetime) -> bool:
    """Whether a job runs according to its record, and its process gives no sign of life."""
    runs = row.state == JobState.RUNNING and row.lease_until is not None
    return runs and not _is_held(row, now)


def _beginning_with(session: Session, text: str) -> JobRow:
    begins = JobRow.id.startswith(text, autoescape=True)
    found = list(session.scalars(sa.select(JobRow).where(begins).limit(2))) if text else []
    if len(found) > 1:
        raise InputError(f"{text!r} begins the names of several jobs; write more of it.")
    if not found:
        recent = sa.select(JobRow.id).order_by(JobRow.created.desc()).limit(1000)
        hint = "`eagleray jobs list` shows them."
        raise UnknownNameError("job", text, session.scalars(recent), hint=hint)
    return found[0]


def _now(session: Session) -> datetime:
    """Return the time by the database's clock, which all processes share."""
    if session.get_bind().dialect.name == "postgresql":
        found: datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
        return found.astimezone(UTC)
    return datetime.now(UTC)
