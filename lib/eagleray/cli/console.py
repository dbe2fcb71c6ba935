"""How a command answers: progress and notes on standard error, the result on standard output.

with command_errors(): …        a user's mistake is one sentence and an exit code
console = Console(json_output=…)
console.note("…")               what is happening
with console.progress(…) as bar: bar.advance(…)
console.result({...}, table)    a table for people, or one JSON object for scripts

Names, labels and messages are often of others. Whatever is printed for people shows control
characters, line breaks and characters that deceive as escapes, and no markup is read in it; JSON
for scripts holds them as escapes of JSON.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import threading
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
from eagleray.core.errors import EaglerayError, ExitCode

__all__ = ["Cell", "Console", "ProgressBar", "command_errors", "open_streams", "quiet_terminal"]

Cell = str | Sequence[str]
"""What a table shows in one place: a line, or several."""

_MIN_WIDTH = 60  # in characters; in less, columns of a table would vanish
_PIPE_WIDTH = 400  # for programs that read what is printed: a cell stays on its line
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "-/s", style="progress.data.speed")


class ProgressBar:
    """One bar: what is done, how fast, when it ends, and what went wrong so far."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._num_failed = 0

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        """Report `count` more units, `failed` of them failures."""
        self._num_failed += failed
        if note is None:
            note = f"{self._num_failed:,} failed" if self._num_failed else ""
        self._progress.update(self._task, advance=count, note=escape_text(note))


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
        """Say what is happening; scripts do not hear it."""
        if not self._json:
            self._print(self._err, text, style="dim")

    def warn(self, text: str) -> None:
        """Say what the user should know, also to the one who reads a script's log."""
        self._print(self._err, text, style="yellow")

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show that something is being waited for."""
        if self._json or not self._err.is_terminal:
            self.note(text)
            yield
        else:
            with self._err.status(Text(escape_text(text))):
                yield

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[ProgressBar]:
        """Show a bar with rate, ETA and failures; outside a terminal, a line now and then."""
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
            title: Above.
            columns: Their names.
            rows: A cell for each column; a list of texts has a line for each.
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
        """Print one line; a line break in it is of others, who could write lines of their own."""
        stream.print(Text(escape_text(text)), style=style, soft_wrap=True)

    @property
    def can_ask(self) -> bool:
        """Whether a person is there to answer a question."""
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
        """Print a value as one line of JSON at once, for scripts that read while we go on."""
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
    """Make standard output and standard error fit to take any text, for as long as we run.

    A character that the locale lacks, or a file name that is no text, is written as its escape. A
    stream that whoever started us has closed is opened on nothing, here and for the programs that
    this one becomes or starts. The traceback of a defect shows text of others as all else does.
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
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(escape_text(text, keep="\n"))


class _QuietBar(ProgressBar):
    def __init__(self, console: Console, description: str, total: int) -> None:
        self._console, self._description, self._total = console, description, total
        self._done = self._num_failed = 0
        self._lock = threading.Lock()
        self._next_tenth = 1

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        with self._lock:
            self._done += count
            self._num_failed += failed
            if self._done * 10 < self._next_tenth * self._total:
                return
            self._next_tenth = self._done * 10 // self._total + 1
        extra = note if note is not None else f"{self._num_failed:,} failed"
        self._console.note(f"{self._description} {self._done:,}/{self._total:,}  {extra}")


@contextlib.contextmanager
def _plain_progress(console: Console, description: str, total: int) -> Iterator[ProgressBar]:
    yield _QuietBar(console, description, total)


@contextlib.contextmanager
def command_errors() -> Iterator[None]:
    """End a command with one sentence and the right exit code when it cannot go on.

    What is neither an `EaglerayError` nor a full disk is a defect of ours and keeps its traceback
    (exit 1).
    """
    try:
        yield
    except EaglerayError as error:
        _print_error(str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        if error.filename is None:  # it may be standard output that is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it still holds is not tried again
        place = f"to {error.filename} " if error.filename else ""
        _print_error(
            f"Nothing more can be written {place}({error.strerror}); make room there, or name "
            "another output or EAGLERAY_HOME, and run the command again."
        )
        raise SystemExit(ExitCode.JOB_FAILED) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _print_error(sentence: str) -> None:
    rich.console.Console(stderr=True, highlight=False).print(
        Text.assemble(("error: ", "bold red"), escape_text(sentence)), soft_wrap=True
    )


@contextlib.contextmanager
def quiet_terminal(log: Path, *, verbose: bool) -> Iterator[None]:
    """Send what native code writes to standard error into a file; Python's own still shows.

    Ray's C++ parts speak to file descriptor 2 and cannot be told not to.

    Args:
        log: The file; it grows.
        verbose: Change nothing.
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
