"""Eagleray as people install it: the wheel, in a new environment that has its dependencies.

The dependencies are those of the environment that runs the tests, by links; this checkout and its
editable installation are not among them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Distributions", "Installed", "build_distributions", "build_wheel", "install"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distributions:
    """What is uploaded for others.

    Attributes:
        source: The source distribution.
        wheel: Built from it.
        direct: The wheel that is built from the checkout itself.
    """

    source: Path
    wheel: Path
    direct: Path


@dataclass(frozen=True)
class Installed:
    """An environment in which the wheel is.

    Attributes:
        folder: The environment.
        python: Its interpreter.
        command: Its `eagleray`.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def command(self) -> Path:
        return self.folder / "bin/eagleray"

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the variables of this process without those that lead to the checkout."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "EAGLERAY_HOME")}
        return kept | changes


def build_distributions(folder: Path) -> Distributions:
    """Build the source distribution, and the wheel once from it and once from the checkout."""
    _build(ROOT, folder / "direct", "sdist", "wheel")
    (source,) = (folder / "direct").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    _build(unpacked, folder / "wheel", "wheel")
    (wheel,) = (folder / "wheel").glob("*.whl")
    (direct,) = (folder / "direct").glob("*.whl")
    return Distributions(source, wheel, direct)


def build_wheel(folder: Path) -> Path:
    """Build the wheel from the checkout, as `make wheel` does."""
    _build(ROOT, folder, "wheel")
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Installed:
    """Install a wheel into a new environment; pip refuses if a dependency is not there."""
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    installed = Installed(folder / "environment")
    packages = folder / "dependencies"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "eagleray" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    (site,) = installed.folder.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{packages}\n")
    words = [sys.executable, "-m", "pip", "--python", str(installed.python), "install", "--quiet"]
    words += ["--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(words, check=True, env=installed.environment(), cwd=folder)
    return installed


def _build(source: Path, folder: Path, *kinds: str) -> None:
    targets = [word for kind in kinds for word in ("--target", kind)]
    words = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), *targets]
    subprocess.run(words, check=True, cwd=source, capture_output=True)
