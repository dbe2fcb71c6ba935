"""Keeps what a job prints in numbered files, in storage that outlives the cluster.

    LOGS/0001-000000.log    the first lines of the first attempt, standard output marked
    LOGS/0001-000001.log    the next ones, some seconds later

A file is never changed, so a reader asks for the next number until there is one. Files of a long
job become rarer: a job that prints for a day has a few hundred.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings

if TYPE_CHECKING:
    from eagleray.database.tables import JobRow

__all__ = ["OUTPUT_MARK", "LogLine", "LogReader", "LogWriter", "log_folder"]

OUTPUT_MARK: Final = "\x1f"
"""Begins each line of standard output in a log; terminals do not show it."""

_FIRST_SECONDS: Final = 2.0
_MAX_SECONDS: Final = 60.0
_FILES_BEFORE_DOUBLING: Final = 60  # of the time between two files
_FILE_BYTES: Final = 256 * 1024
_MAX_BYTES: Final = 64 * 2**20  # of an attempt
_MAX_WAITING_BYTES: Final = 4 * 2**20  # while the storage does not answer
_WITH_OUTPUT: Final = frozenset({"predict", "pack"})
_CUT: Final = "(the log is longer; the rest is left out here)\n"


def log_folder(row: JobRow, settings: Settings) -> str:
    """Return where the log of a job is kept: with its results, or in the folder of all jobs."""
    from eagleray.io import storage

    if row.output and row.program in _WITH_OUTPUT:
        return storage.join(storage.absolute(row.output), f"_eagleray/logs/{row.id}")
    return storage.join(storage.absolute(settings.job_logs), row.id)


def _file(folder: str, epoch: int, number: int) -> str:
    from eagleray.io import storage

    return storage.join(folder, f"{epoch:04d}-{number:06d}.log")


class LogWriter:
    """Writes the log of one attempt, in a thread; a storage that fails delays it only.

    Args:
        folder: Folder or URI of the log.
        epoch: Number of the attempt.
        seconds: Time between the first files.
    """

    def __init__(
        self,
        folder: str,
        epoch: int,
        *,
        seconds: float = _FIRST_SECONDS,
    ) -> None:
        self._folder, self._epoch, self._seconds = folder, epoch, seconds
        self._lines: list[bytes] = []
        self._waiting = self._total = self._number = 0
        self._changed = threading.Condition()
        self._ended = False
        self.fault = ""
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def add(self, line: str, *, is_output: bool) -> None:
        """Add a line, with its line break."""
        encoded = f"{OUTPUT_MARK if is_output else ''}{line}".encode(errors="replace")
        with self._changed:
            full = self._total > _MAX_BYTES or self._waiting > _MAX_WAITING_BYTES
            if full:
                if self._lines and self._lines[-1] != _CUT.encode():
                    self._lines.append(_CUT.encode())
                return
            self._lines.append(encoded)
            self._waiting += len(encoded)
            self._total += len(encoded)
            if self._waiting >= _FILE_BYTES:
                self._changed.notify()

    def close(self, *, seconds: float = 20.0) -> None:
        """Write what is left; a storage that does not answer in time is not waited for."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            pause = self._seconds * 2 ** (self._number // _FILES_BEFORE_DOUBLING)
            deadline = time.monotonic() + min(pause, _MAX_SECONDS)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ended or self._waiting >= _FILE_BYTES,
                    timeout=max(0.0, deadline - time.monotonic()),
                )
                ended, lines = self._ended, self._lines
                self._lines, self._waiting = [], 0
            if lines and not self._put(b"".join(lines)):
                with self._changed:
                    self._lines = lines + self._lines
                    self._waiting = sum(map(len, self._lines))
                if ended:
                    return
                time.sleep(min(pause, 1.0))  # a full buffer would otherwise try again at once
            elif ended:
                return

    def _put(self, content: bytes) -> bool:
        from eagleray.io import storage

        try:
            storage.put_atomic(_file(self._folder, self._epoch, self._number), content)
        except (OSError, InputError) as error:
            self.fault = str(error)
            return False
        self._number += 1
        self.fault = ""
        return True


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log.

    Attributes:
        text: The line, with its line break.
        is_output: Whether it was printed on standard output; otherwise on standard error.
    """

    text: str
    is_output: bool


class LogReader:
    """Reads the log of a job from its beginning, as far as it is written.

    Args:
        row: The job.
        epoch: Number of the attempt to begin with.
        number: Number of the file in it to begin with.
    """

    def __init__(self, row: JobRow, *, epoch: int = 1, number: int = 0) -> None:
        self._folder, self._s3 = row.logs, row.s3
        self._epoch, self._number = epoch, number

    @property
    def position(self) -> tuple[int, int]:
        """Numbers of the attempt and of the file that are read next."""
        return self._epoch, self._number

    def read(self, epoch: int) -> Iterator[LogLine]:
        """Yield the lines that were not read yet.

        Args:
            epoch: Number of the present attempt.

        Raises:
            OSError: If the storage does not answer.
        """
        while (lines := self.read_file(epoch)) is not None:
            yield from lines

    def read_file(self, epoch: int) -> list[LogLine] | None:
        """Return the lines of the next file; None if there is none yet.

        Args:
            epoch: Number of the present attempt.

        Raises:
            OSError: If the storage does not answer.
        """
        while self._folder:
            content = self._next_file()
            if content is not None:
                return [
                    LogLine(line.removeprefix(OUTPUT_MARK), line.startswith(OUTPUT_MARK))
                    for line in io.StringIO(content.decode(errors="replace"), newline="\n")
                ]
            if self._epoch >= epoch:
                return None
            self._epoch, self._number = self._epoch + 1, 0
        return None

    def _next_file(self) -> bytes | None:
        from eagleray.io import storage

        options = storage.S3Options(**self._s3)
        with contextlib.suppress(FileNotFoundError), storage.using_s3(options):
            content = storage.read_bytes(_file(self._folder, self._epoch, self._number))
            self._number += 1
            return content
        return None
