"""Runs the numerical tests with the instruction sets of other CPUs.

    python -m tests.portable
    python -m tests.portable --machine AVX2 -k predictor

PyTorch and oneDNN are limited to an instruction set, and in one run the last bits of every network
depend on the place of an image in its batch. A machine that this CPU cannot emulate is skipped and
named. Tests with a Ray, and those of exports and imports, which convert networks in processes of
their own, take long; they run as the smallest of the machines only. The arguments after the options
go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch

MACHINES = {
    "SSE4.1": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX-512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "rounding by place": {"EAGLERAY_TEST_ROUNDING": "by-place"},
}
_SMALLEST = "SSE4.1"
_OF_SMALLEST = ("tests/unit/exports", "tests/unit/importing")
_NEEDS = {
    "AVX2": ("AVX2", "AVX512"),
    "AVX-512": ("AVX512",),
    "SSE4.1": ("DEFAULT", "AVX2", "AVX512"),
}


def main() -> int:
    """Run the tests as each machine, and return 1 if any of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", choices=MACHINES, action="append", help="Default: all.")
    options, rest = parser.parse_known_args()
    lines, failed = [], False
    for name in options.machine or MACHINES:
        if not can_emulate(name):
            lines.append(f"{name:<18} skipped: this CPU does not have its instructions")
            continue
        started = time.monotonic()
        print(f"--- {name} ---", flush=True)
        code = _run_tests(name, rest)
        failed |= code != 0
        outcome = "passed" if code == 0 else f"FAILED (pytest ended with {code})"
        lines.append(f"{name:<18} {outcome} in {time.monotonic() - started:.0f} s")
    print("\n".join(["", *lines]))
    return int(failed)


def can_emulate(machine: str) -> bool:
    """Whether this CPU has the instructions of a machine; one that lacks them would crash."""
    here = torch.backends.cpu.get_cpu_capability()
    return here in _NEEDS.get(machine, (here,))


def _run_tests(name: str, rest: list[str]) -> int:
    """Return the worst exit code."""
    folders = ["tests/unit"] if name != _SMALLEST else ["tests/unit", "tests/integration"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "numerical and not long"]
    if name != _SMALLEST:
        command += [f"--ignore={folder}" for folder in _OF_SMALLEST]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **MACHINES[name]}
    codes = []
    for folder in folders:
        # Tests of one file share a Ray, which wants processes that have not imported it before.
        count, way = ("3", "worksteal") if folder == "tests/unit" else ("2", "loadfile")
        spread = ["--numprocesses", count, "--dist", way]
        done = subprocess.run([*command, *spread, *rest, folder], env=environment, check=False)
        codes.append(done.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
