"""Measures the time and memory of loading hostile packages, and prints the error of each.

python -m tests.bench.hostile_packages
python -m tests.bench.hostile_packages --only weights
python -m tests.bench.hostile_packages --json
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torchvision  # noqa: F401 - imported before memory is measured

from eagleray.models.architectures import architecture_names
from eagleray.models.package import write_package
from tests.support.hostile_packages import HOSTILE, Attempt, Hostile, attempt
from tests.support.models import small_package


def attempts(chosen: Sequence[Hostile]) -> Iterator[tuple[Hostile, Attempt]]:
    """Try to load packages one after the other."""
    architecture_names()  # imports what knows them
    with tempfile.TemporaryDirectory(prefix="eagleray-") as place:
        good = Path(place) / "good"
        write_package(small_package(), str(good))
        attempt(str(good))  # imports what is left
        for hostile in chosen:
            folder = Path(place) / "hostile/package"
            hostile.write(folder)
            yield hostile, attempt(str(folder))
            shutil.rmtree(folder.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="packages whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    chosen = [one for one in HOSTILE if given.only in one.name]
    if given.json:
        print(json.dumps({one.name: asdict(made) for one, made in attempts(chosen)}))
        return
    print("| package | seconds | MB | error |\n|---|---|---|---|", flush=True)
    for hostile, made in attempts(chosen):
        said = (made.refusal or f"**{made.ended}**").replace("|", " ")
        print(
            f"| {hostile.name} | {made.seconds:.2f} | {made.megabytes:.0f} | {said[:200]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
