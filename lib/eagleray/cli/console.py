"""The terminal of a command: progress and notes on standard error, results on standard output.

with command_errors(): …        errors become one sentence and an exit code
console = Console(json_output=…)
console.note("…")
with console.progress(…) as bar: bar.advance(…)
console.emit({...})             one JSON object for scripts

Printed text is escaped, because names, labels and messages may be untrusted: control characters,
line breaks and deceptive characters appear as escapes, and no markup is interpreted.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from eagleray.core.display import escape_json, escape_text
from eagleray.core.errors import EaglerayError, ExitCode, ResumableInterrupt
from eagleray.core.job_channel import process_channel
from eagleray.core.logs import writes_json

__all__ = ["Cell", "Console", "ProgressBar", "command_errors", "open_streams", "quiet_terminal"]

_log = logging.getLogger("eagleray.console")

Cell = str | Sequence[str]
"""Content of a table cell: one line, or several."""

_MIN_WIDTH = 60  # in characters; in less, columns of a table would vanish
_PIPE_WIDTH = 400  # for programs that read what is printed: a cell stays on its line
_MIN_PER_SECOND = 0.1  # slower rates, as of trials, are shown per minute
_QUIET_SECONDS = 30.0  # after a line of the job's own, in which no tenth is printed
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            shown = "-/s"
        else:
            shown = f"{speed:,.1f}/s" if speed >= _MIN_PER_SECOND else f"{speed * 60:,.1f}/min"
        return Text(shown, style="progress.data.speed")


class ProgressBar:
    """A progress bar with rate, ETA and the number of failures."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._num_failed = 0

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        """Report `count` more units, `failed` of them failures."""
        self._num_failed += failed
        if note is None:
            note = f"{self._num_failed:,} failed" if self._num_failed else ""
        self._progress.update(self._task, advance=count, note=escape_text(note))

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._progress.console.print(Text(escape_text(text)), soft_wrap=True)


class Console:
    """The terminal of one command.

    Args:
        json_output: Print one JSON object instead of tables, and no progress.
    """

    def __init__(self, *, json_output: bool = False) -> None:
        self._json = json_output
        self._out = rich.console.Console(highlight=False)
        self._out.width = max(self._out.width, _MIN_WIDTH if self._out.is_terminal else _PIPE_WIDTH)
        self._err = rich.console.Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """Print a note on standard error, unless a script reads the output."""
        if not self._json:
            self.announce(text)

    def announce(self, text: str) -> None:
        """Print a note on standard error, also if a script reads the output."""
        self._report(logging.INFO, text, style="dim")

    def warn(self, text: str) -> None:
        """Print a warning on standard error."""
        self._report(logging.WARNING, text, style="yellow")

    def _report(self, level: int, text: str, *, style: str) -> None:
        if writes_json():
            _log.log(level, "%s", text)
        else:
            self._print(self._err, text, style=style)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show that the command waits for something."""
        if self._json or not self._err.is_terminal:
            self.note(text)
            yield
        else:
            with self._err.status(Text(escape_text(text))):
                yield

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[ProgressBar]:
        """Show a progress bar; outside a terminal, print a line for each tenth.

        The process that runs a submitted command learns of the progress too.
        """
        with self._bar(description, total) as bar:
            yield _ReportedBar(bar, description, total)

    @contextlib.contextmanager
    def _bar(self, description: str, total: int) -> Iterator[ProgressBar]:
        if self._json or not self._err.is_terminal:
            with _plain_progress(self, description, total) as bar:
                yield bar
            return
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),  # with all that follows it still fits into 80 columns
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="yellow", markup=False),
            console=self._err,
        )
        with progress:
            task = progress.add_task(escape_text(description), total=total, note="")
            yield ProgressBar(progress, task)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Print a table for people.

        Args:
            title: Title above the table.
            columns: Names of the columns.
            rows: Rows with a cell for each column.
        """
        table = _table(title)
        for column in columns:
            table.add_column(Text(escape_text(column)))
        for row in rows:
            table.add_row(*[_cell(cell) for cell in row])
        self._out.print(table)

    def facts(self, title: str, facts: Mapping[str, object]) -> None:
        """Print names with values for people."""
        table = _table(title, show_header=False)
        for name, value in facts.items():
            table.add_row(Text(escape_text(name), style="dim"), _cell(str(value)))
        self._out.print(table)

    def say(self, text: str) -> None:
        """Print a line of the result for people."""
        self._print(self._out, text)

    @staticmethod
    def _print(stream: rich.console.Console, text: str, *, style: str | None = None) -> None:
        """Print one line; line breaks in the text are escaped, so it cannot forge other lines."""
        stream.print(Text(escape_text(text)), style=style, soft_wrap=True)

    @property
    def can_ask(self) -> bool:
        """Whether the user can answer a question on the terminal."""
        return not self._json and sys.stdin.isatty()

    @property
    def for_scripts(self) -> bool:
        """Whether a script reads the output."""
        return self._json

    def emit(self, value: Any) -> None:
        """Print a value as JSON for scripts."""
        sys.stdout.write(_json(value, indent=2) + "\n")
        sys.stdout.flush()

    def emit_line(self, value: Any) -> None:
        """Print a value as one line of JSON at once, for scripts that read as it runs."""
        sys.stdout.write(_json(value) + "\n")
        sys.stdout.flush()


def _json(value: Any, *, indent: int | None = None) -> str:
    plain = sys.stdout.encoding.lower() != "utf-8"  # \u… is read everywhere
    return escape_json(json.dumps(value, indent=indent, ensure_ascii=plain, default=str))


def _table(title: str, *, show_header: bool = True) -> Table:
    text = Text(escape_text(title))
    return Table(title=text, title_justify="left", title_style="bold", show_header=show_header)


def _cell(cell: Cell) -> Text:
    lines = [cell] if isinstance(cell, str) else cell
    return Text("\n".join(map(escape_text, lines)), overflow="fold")


def open_streams() -> None:
    """Make standard output and standard error accept any text.

    Characters that the locale lacks, and file names that are not text, are written as escapes.
    Streams that the parent process has closed are opened on the null device, also for child
    processes. Tracebacks are escaped as all other text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _print_traceback


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if writes_json():
        _log.critical("%s", error, exc_info=(kind, error, trace))
        return
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(escape_text(text, keep="\n"))


class _ReportedBar(ProgressBar):
    """Passes calls on to a bar, and reports them in the channel of a submitted command."""

    def __init__(self, bar: ProgressBar, description: str, total: int) -> None:
        self._bar, self._description, self._total = bar, description, total
        self._done = self._num_failed = 0
        self._lock = threading.Lock()
        self._report()

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        with self._lock:
            self._done += count
            self._num_failed += failed
            self._report()
        self._bar.advance(count, failed=failed, note=note)

    def line(self, text: str) -> None:
        self._bar.line(text)

    def _report(self) -> None:
        process_channel().progress(self._description, self._done, self._num_failed, self._total)


class _LineBar(ProgressBar):
    def __init__(self, console: Console, description: str, total: int) -> None:
        self._console, self._description, self._total = console, description, total
        self._done = self._num_failed = 0
        self._lock = threading.Lock()
        self._next_tenth = 1
        self._quiet_until = 0.0

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        with self._lock:
            self._done += count
            self._num_failed += failed
            if self._done * 10 < self._next_tenth * self._total:
                return
            if time.monotonic() < self._quiet_until:
                return
            self._next_tenth = self._done * 10 // self._total + 1
        extra = note if note is not None else f"{self._num_failed:,} failed"
        self._console.note(f"{self._description} {self._done:,}/{self._total:,}  {extra}")

    def line(self, text: str) -> None:
        self._quiet_until = time.monotonic() + _QUIET_SECONDS
        self._console.note(text)


@contextlib.contextmanager
def _plain_progress(console: Console, description: str, total: int) -> Iterator[ProgressBar]:
    yield _LineBar(console, description, total)


@contextlib.contextmanager
def command_errors() -> Iterator[None]:
    """End a command with one sentence and the exit code of the error.

    Errors that are neither an `EaglerayError` nor a full disk are defects of Eagleray; they keep
    their traceback (exit code 1).
    """
    try:
        yield
    except EaglerayError as error:
        _print_error(str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        if error.filename is None:  # it may be standard output that is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it still holds is not tried again
        place = f"to {error.filename} " if error.filename else ""
        _print_error(
            f"Nothing more can be written {place}({error.strerror}); free space there, or name "
            "another output or EAGLERAY_HOME, and run the command again."
        )
        raise SystemExit(ExitCode.JOB_FAILED) from None
    except KeyboardInterrupt as interrupt:
        _print_end("interrupted")
        if isinstance(interrupt, ResumableInterrupt):
            _print_end(f"resume with: {interrupt.command}")
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _print_end(text: str) -> None:
    if writes_json():
        _log.warning("%s", text)
    else:
        sys.stderr.write(f"{escape_text(text)}\n")


def _print_error(sentence: str) -> None:
    if writes_json():
        _log.error("%s", sentence)
        return
    rich.console.Console(stderr=True, highlight=False).print(
        Text.assemble(("error: ", "bold red"), escape_text(sentence)), soft_wrap=True
    )


@contextlib.contextmanager
def quiet_terminal(log: Path, *, verbose: bool) -> Iterator[None]:
    """Redirect what native code writes to standard error into a file; Python's output still shows.

    Ray's C++ code writes to file descriptor 2 and has no setting against it.

    Args:
        log: File to append to.
        verbose: Redirect nothing.
    """
    if verbose:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    python_stderr = sys.stderr
    python_stderr.flush()
    with os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(terminal.fileno(), 2)
