"""Runs a submitted command on the cluster; the job server starts it there.

It compares the versions first. What the command prints on standard output is marked, because the
job server keeps one log of both streams.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Final

__all__ = ["OUTPUT_MARK", "VARIABLE", "main"]

VARIABLE: Final = "EAGLERAY_SUBMISSION"
"""Environment variable of the submission, as JSON."""
OUTPUT_MARK: Final = "\x1f"
"""Begins each line of standard output in the log; terminals do not show it."""

_USER_ERROR: Final = 2  # `ExitCode.USER`


def main() -> int:
    """Run the command of the environment, and return its exit code."""
    submission = json.loads(os.environ.pop(VARIABLE))
    if submission["version"] != (ours := version("eagleray")):
        sys.stderr.write(
            f"error: The cluster has Eagleray {ours} and the submitter "
            f"{submission['version']}; install the cluster's version.\n"
        )
        return _USER_ERROR
    # Ray may have put the address of its job server here, and its own is another one.
    environment = {**os.environ, "EAGLERAY_RAY_ADDRESS": os.environ.get("RAY_ADDRESS", "auto")}
    environment["EAGLERAY_LOG_FORMAT"] = "text"  # the submitter's terminal shows it
    program, words = submission["program"], submission["words"]
    command = [sys.executable, "-P", "-m", "eagleray", program, *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(f"{OUTPUT_MARK}{line}")
            sys.stdout.flush()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
