"""Runs a submitted job on the cluster; the job server starts this process there.

It claims the job's record, waits for its turn in the queue, and runs the command. Meanwhile it
renews the job's lease, keeps what the command prints, and passes requests on to it: to end, or to
make room for another job. If another attempt has taken the job, it ends its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from eagleray.core.display import escape_text
from eagleray.core.errors import EaglerayError, ExitCode, InputError, OutageError, UserError
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings, read_settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.database.tables import JobRow
from eagleray.io import storage
from eagleray.io.spec_fields import S3Fields
from eagleray.scheduling.assignment import (
    HANDED_OVER,
    SPEC_VARIABLE,
    VARIABLE,
    Assignment,
)
from eagleray.scheduling.command import JobCommand
from eagleray.scheduling.logs import OUTPUT_MARK, LogWriter
from eagleray.scheduling.packages import keep_package, place_inputs, replace_words
from eagleray.scheduling.records import JobRecords, Report, new_job
from eagleray.scheduling.size import count_images

__all__ = ["main"]

_SPEC_WORDS: Final = ("--json", "--spec", f"env:{SPEC_VARIABLE}")
_SECONDS_BETWEEN_TURNS: Final = 2.0
_SECONDS_BETWEEN_LOOKS: Final = 0.5  # while another job makes room, or might be asked to
_HOLDABLE: Final = frozenset({"pack", "predict"})  # commands that prepare a job and wait
_SECONDS_TO_STORE_END: Final = 600.0


def main() -> int:
    """Run the assigned job, and return the exit code of its command."""
    # Ray blocks interrupts in all its processes; the command is to heed them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assignment = Assignment.parse(os.environ.pop(VARIABLE, ""))
    if assignment is None:
        raise UserError(f"{VARIABLE} holds no submission; `eagleray predict --cluster …` sets it.")
    settings = read_settings()
    database = open_database(settings)
    records = JobRecords(database, settings)
    fault = _mismatch(assignment, database)
    if assignment.record and not fault:
        _add_record(records, assignment)
    row = records.claim(assignment.job, assignment.submission)
    if fault:
        if row is not None:
            records.end(row, JobState.FAILED, exit_code=ExitCode.USER, message=fault)
        raise UserError(fault)
    if row is None:
        _say(f"Job {assignment.job} has ended, or belongs to another submission.")
        return HANDED_OVER
    storage.use_s3(S3Fields().with_settings(settings).s3)
    storage.use_s3(storage.S3Options(**row.s3))
    attempt = _Attempt(records, settings, row, assignment)
    signal.signal(signal.SIGTERM, attempt.stop)
    signal.signal(signal.SIGINT, attempt.stop)
    return attempt.run()


def _add_record(records: JobRecords, assignment: Assignment) -> None:
    """Add the record of a job, or have it follow the submitter, who did not reach the database.

    Raises:
        InputError: If another attempt of the job runs.
    """
    ours = {"id": assignment.job, "submission": assignment.submission}
    row = records.add(new_job(**assignment.record, **ours))
    if assignment.after and row.submission == assignment.after:
        records.submit_again(row, submission=assignment.submission)


def _mismatch(assignment: Assignment, database: OpenDatabase) -> str:
    """Return why a submission is not for this cluster; "" if it is."""
    ours = Assignment(job="", submission="").version
    if assignment.version != ours:
        return (
            f"The cluster has Eagleray {ours} and the submitter {assignment.version}; install the "
            "cluster's version."
        )
    if assignment.database and assignment.database != database.read_identity():
        return (
            "EAGLERAY_DATABASE_URL names another database on the cluster than on the submitter's "
            "machine; set the same one, or none on the submitter's."
        )
    return ""


class _Attempt:
    """One attempt of a job, from its claim to its end."""

    def __init__(
        self, records: JobRecords, settings: Settings, row: JobRow, assignment: Assignment
    ) -> None:
        self._records, self._settings, self._row = records, settings, row
        self._inputs = assignment.inputs or (row.spec or {}).get("inputs", ())
        # Ray may have put the address of its job server here, and its own is another one.
        self._ray_address = assignment.ray_address or os.environ.get("RAY_ADDRESS", "auto")
        self._stopped = False
        self._command: JobCommand | None = None
        self._log: LogWriter | None = None
        self._sized = threading.Event()

    def stop(self, _: int, __: FrameType | None) -> None:
        """End the command: the job server was asked to stop the job."""
        self._stopped = True
        if self._command is not None:
            self._command.terminate()

    def run(self) -> int:
        """Wait for the job's turn, run its command, and store how it ends."""
        if (code := self._wait_for_turn()) is not None:
            if self._command is not None:
                self._command.interrupt()
                self._end_command(self._command)
            return code
        command = self._command or self._start_command()
        command.request("start")
        watch = _Watch(self._records, self._settings, self._row, command)
        interrupted = watch.run()
        self._stopped = self._stopped or interrupted
        code = self._end_command(command)
        self._store_end(command.message, code, watch.last_report())
        return code if code >= 0 else 128 - code

    def _start_command(self, *, held: bool = False) -> JobCommand:
        """Start the command; one that is held prepares its job, and waits for the request."""
        log = LogWriter(self._row.logs, self._row.epoch)

        def on_line(line: str, is_output: bool) -> None:
            log.add(line, is_output=is_output)
            stream = sys.stdout if is_output else sys.stderr
            stream.write(f"{OUTPUT_MARK}{line}" if is_output else line)
            stream.flush()

        places = self._place_inputs()
        words = replace_words(_words(self._row), places)
        command = JobCommand(words, self._environment(), on_line=on_line, held=held)
        self._command, self._log = command, log
        if self._stopped:
            command.terminate()
        return command

    def _end_command(self, command: JobCommand) -> int:
        """Wait for the end of the command and close its log; return its exit code."""
        code = command.wait()
        if self._log is not None:
            self._log.close()
            if self._log.fault:
                _say(f"The log could not be kept in {self._row.logs} ({self._log.fault}).")
        return code

    def _wait_for_turn(self) -> int | None:
        """Wait until the job is admitted; return an exit code if it never is.

        When another job makes room for it, its command is started, so that it is prepared by then.
        """
        job, position = self._row.id, 0
        while not self._stopped:
            try:
                turn = self._records.wait_for_turn(job, self._row.epoch)
            except OutageError as error:
                _say(f"The queue cannot be read now: {error}")
                time.sleep(_SECONDS_BETWEEN_TURNS)
                continue
            if turn is None:
                _say(f"Job {job} was cancelled, or belongs to another submission.")
                return ExitCode.INTERRUPTED
            if turn.admitted:
                return None
            if turn.parked:
                _say(
                    f"Job {job} waits in the database as number {turn.position}; `eagleray "
                    "supervise` submits it again when its turn comes near."
                )
                return HANDED_OVER
            if position == 0 and self._row.size is None and self._inputs:
                threading.Thread(target=self._count, daemon=True).start()
            if turn.position != position:
                position = turn.position
                _say(f"Job {job} waits for its turn; it is number {position} in the queue.")
            if turn.expected and self._command is None and self._is_holdable:
                self._start_command(held=True)
            if self._command is not None and self._command.exit_code is not None:
                return None  # it has failed before its turn, or had nothing left to do
            self._sized.wait(_SECONDS_BETWEEN_LOOKS if turn.expected else _SECONDS_BETWEEN_TURNS)
            self._sized.clear()
        self._records.end(self._row, JobState.CANCELLED)
        return ExitCode.INTERRUPTED

    @property
    def _is_holdable(self) -> bool:
        """Whether the command can be started before its turn, and works on nothing until then."""
        return self._row.program in _HOLDABLE and "--quote" not in self._row.words

    def _count(self) -> None:
        """Store how many images a job has that waits, if they are few."""
        size = count_images(self._inputs)
        if size is not None:
            with contextlib.suppress(OutageError):  # the job waits in its place then
                self._records.set_size(self._row.id, size)
                self._sized.set()

    def _place_inputs(self) -> dict[str, str]:
        """Put local inputs where another head finds them too; meanwhile, renew the lease.

        Returns:
            Their locations, by their names in the job's command.
        """
        root = storage.absolute(self._settings.job_logs)
        if not self._row.package:
            return {}
        if not storage.is_remote(root):
            threading.Thread(target=self._keep_inputs, daemon=True).start()
            return {}
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            placing = thread.submit(place_inputs, self._row, Path.cwd(), root)
            while not concurrent.futures.wait([placing], self._settings.heartbeat_seconds).done:
                with contextlib.suppress(OutageError):
                    self._records.beat(self._row.id, self._row.epoch, Report())
            try:
                return placing.result()
            except (OSError, InputError) as error:
                _say(
                    f"The local inputs could not be put into {root} ({error}); another head cannot "
                    "resume this job."
                )
                return {}

    def _keep_inputs(self) -> None:
        """Keep the archive of local inputs beside the log."""
        try:
            keep_package(self._row, Path.cwd())
        except (OSError, InputError) as error:
            _say(f"The local inputs could not be kept in {self._row.logs} ({error}).")

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "EAGLERAY_RAY_ADDRESS": self._ray_address}
        environment["EAGLERAY_LOG_FORMAT"] = "text"  # the submitter's terminal shows it
        if self._row.spec is not None:
            environment[SPEC_VARIABLE] = json.dumps(self._row.spec)
        return environment

    def _store_end(self, message: str, code: int, report: Report) -> None:
        """Store how the command has ended; a database that does not answer is waited for."""
        job, state = self._row.id, JobState.FAILED
        if code == ExitCode.OK:
            state, message = JobState.SUCCEEDED, ""
        elif self._stopped:
            state, message = JobState.CANCELLED, f"`eagleray jobs retry {job}` resumes it."
        elif code < 0:
            state, name = JobState.LOST, signal.Signals(-code).name
            message = f"Its process was ended by {name}; the node may have had too little memory."
        deadline = time.monotonic() + _SECONDS_TO_STORE_END
        while True:
            try:
                held = self._records.end(
                    self._row, state, exit_code=code, message=message, report=report
                )
            except OutageError as error:
                _say(f"The end of job {job} ({state}) cannot be stored now: {error}")
                if time.monotonic() > deadline:
                    return
                time.sleep(_SECONDS_BETWEEN_TURNS)
            else:
                if not held:
                    _say(f"Job {job} was cancelled, or another attempt has taken it.")
                return


class _Watch:
    """Renews the lease of a job while its command runs, and passes messages both ways."""

    def __init__(
        self, records: JobRecords, settings: Settings, row: JobRow, command: JobCommand
    ) -> None:
        self._records, self._command, self._row = records, command, row
        self._seconds = settings.heartbeat_seconds
        self._report = Report()
        self._cores, self._gpus, self._counted = 1.0, 0.0, time.monotonic()
        self._asked = self._has_room = self._waits = False
        self._next_look = 0.0

    def run(self) -> bool:
        """Watch the command until it ends; return whether it was interrupted."""
        next_beat = time.monotonic()
        while self._command.exit_code is None:
            if time.monotonic() >= next_beat:
                try:
                    goes_on = self._beat()
                except OutageError as error:
                    _say(f"The record of job {self._row.id} cannot be renewed now: {error}")
                    goes_on = True
                if not goes_on:
                    self._command.interrupt()
                    return True
                pause = _SECONDS_BETWEEN_TURNS if self._waits else self._seconds
                next_beat = time.monotonic() + min(pause, self._seconds)
            pause = next_beat - time.monotonic()
            if self._may_be_asked:
                pause = min(pause, _SECONDS_BETWEEN_LOOKS)
            if self._take(self._command.next_message(pause)) or self._is_asked():
                next_beat = time.monotonic()
        return False

    @property
    def _may_be_asked(self) -> bool:
        """Whether a job that waits may have this one make room, and has not done so."""
        return self._report.can_yield and not (self._asked or self._has_room or self._waits)

    def _is_asked(self) -> bool:
        """Whether there is a request, looked up twice a second while there may be one."""
        if not self._may_be_asked or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        with contextlib.suppress(OutageError):  # the next sign of life says so
            return self._records.is_asked(self._row.id, self._row.epoch)
        return False

    def last_report(self) -> Report:
        """Return what the command has reported until its end and the record does not have."""
        for message in self._command.last_messages():
            self._take(message)
        self._count()
        return self._report

    def _take(self, message: Mapping[str, Any]) -> bool:
        """Take in a message of the command; return whether the record should have it at once."""
        self._count()
        if "stage" in message:
            self._report = replace(
                self._report,
                stage=str(message["stage"]),
                num_done=int(message["done"]),
                num_failed=int(message["failed"]),
                num_total=int(message["total"]),
            )
        if "cores" in message:
            self._cores, self._gpus = float(message["cores"]), float(message["gpus"])
        if "resumed_by" in message:
            self._report = replace(self._report, resumed_by=tuple(message["resumed_by"]))
        if "can_yield" in message:
            self._report = replace(self._report, can_yield=bool(message["can_yield"]))
        if "yielded" in message:
            self._has_room = True
        return bool(message.keys() & {"can_yield", "yielded", "resumed_by"})

    def _count(self) -> None:
        """Add what the workers have held since the last count."""
        now = time.monotonic()
        if not self._waits and not self._has_room:
            seconds = now - self._counted
            self._report = replace(
                self._report,
                core_seconds=self._report.core_seconds + seconds * self._cores,
                gpu_seconds=self._report.gpu_seconds + seconds * self._gpus,
            )
        self._counted = now

    def _beat(self) -> bool:
        """Renew the lease; return whether the command goes on."""
        job, epoch = self._row.id, self._row.epoch
        if self._has_room:
            if not self._records.make_room(job, epoch, self._report):
                return False
            self._has_room, self._waits = False, True
        if self._waits:
            turn = self._records.wait_for_turn(job, epoch)
            if turn is None or not turn.admitted:
                return turn is not None
            self._waits = self._asked = False
            self._counted = time.monotonic()
            self._command.request("resume")
        self._count()
        orders = self._records.beat(job, epoch, self._report)
        self._report = replace(self._report, core_seconds=0.0, gpu_seconds=0.0)
        if orders is None or orders.cancel:
            return False
        if orders.yields != self._asked:
            self._asked = orders.yields
            self._command.request("yield" if orders.yields else "resume")
        return True


def _words(row: JobRow) -> list[str]:
    """Return the words of a job's command: its own, or what resumes it, or its specification."""
    by_spec = row.spec is not None and not row.words
    return [row.program, *(_SPEC_WORDS if by_spec else row.words)]


def _say(text: str) -> None:
    """Print a sentence in the log that the job server keeps."""
    sys.stderr.write(f"{escape_text(text)}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EaglerayError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
