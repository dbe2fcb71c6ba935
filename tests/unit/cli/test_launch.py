"""How a program ends: its exit code, its exit handlers, and everything that it printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, sys, threading, time
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
print("result")
{end}
"""


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("", 0, ""),
        ("sys.exit(4)", 4, ""),
        ("sys.exit('a sentence')", 1, "a sentence\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_a_program_ends_as_python_ends_it(end: str, code: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "some_program.py").write_text(PROGRAM.format(end=end))
    run = subprocess.run(
        [sys.executable, "-m", "eagleray.cli.launch", "some_program"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (run.returncode, run.stderr) == (code, told)
    assert run.stdout.splitlines() == ["result", "thread", "handler"]


def test_an_error_of_a_program_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "some_program.py").write_text("1 / 0")
    run = subprocess.run(
        [sys.executable, "-m", "eagleray.cli.launch", "some_program"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 1
    assert run.stderr.endswith("ZeroDivisionError: division by zero\n")
