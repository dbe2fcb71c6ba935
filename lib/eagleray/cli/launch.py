"""Runs a program of Eagleray; an interrupt during its imports prints no traceback.

    python -P -m eagleray.cli.launch eagleray.serve.run digits

Programs import for seconds before the first line of their own `main`. This module imports only the
standard library, so that Ctrl-C ends them in one word from the beginning.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

__all__ = ["main", "run_program"]

_INTERRUPTED = 130  # `ExitCode.INTERRUPTED`, which takes a while to import


def main() -> None:
    """Run the `eagleray` command."""

    def run() -> None:
        from eagleray.cli.main import main as run_command

        run_command()

    _end_quietly(run)


def run_program(module: str) -> None:
    """Run a module as `python -m` does, with the words that are left in `sys.argv`."""
    _end_quietly(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def _end_quietly(run: Callable[[], object]) -> None:
    try:
        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(_INTERRUPTED) from None


def _exit_at_once(run: Callable[[], object]) -> NoReturn:
    """Run a program, then end this process without freeing its modules, which takes a second.

    Threads are waited for and exit handlers are called, as Python does.
    """
    code: object = 0
    try:
        run()
    except SystemExit as end:
        code = end.code
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    _exit_at_once(lambda: run_program(sys.argv[0]))
