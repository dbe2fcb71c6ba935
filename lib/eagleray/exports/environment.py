"""Makes environments with the pinned packages of an export format, which Eagleray does not need.

An environment is a folder of packages under `cache/environments/`, named by the digest of its
requirements. A process that has it on its path sees these packages first, and Eagleray's own behind
them: PyTorch and numpy are not installed twice.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sysconfig
import tempfile
import venv
from pathlib import Path

from filelock import FileLock

from eagleray.core.errors import InputError

__all__ = ["environment_folder", "make_environment"]

_MAX_SECONDS = 1800


def environment_folder(requirements: Path, cache_folder: Path) -> Path:
    """Return the folder of an environment, which need not exist yet."""
    text = "\n".join(
        [requirements.read_text(), sysconfig.get_platform(), sysconfig.get_python_version()]
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder / "environments" / digest


def make_environment(requirements: Path, cache_folder: Path) -> Path:
    """Install pinned packages into a folder of the cache, once, and return the folder.

    pip installs them from where the user has configured it to. It verifies the digest of each, runs
    no code of theirs, and installs no others.

    Raises:
        InputError: If a package cannot be installed.
    """
    folder = environment_folder(requirements, cache_folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            temporary = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                _install(requirements, temporary)
                (temporary / "packages").replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _install(requirements: Path, temporary: Path) -> None:
    """Install into `packages` with a pip of its own, as this environment may have none."""
    venv.create(temporary / "pip", with_pip=True)
    command: list[str | Path] = [
        temporary / "pip/bin/python",
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--target", temporary / "packages"]
    command += ["--requirement", requirements]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _not_installed(requirements, f"pip took longer than {_MAX_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        text = lines[-1][:300] if lines else f"pip ended with exit code {done.returncode}"
        raise _not_installed(requirements, text)


def _not_installed(requirements: Path, text: str) -> InputError:
    return InputError(
        f"The packages of {requirements.name} cannot be installed ({text.rstrip('.')}); check that "
        "pip reaches a package index from here, and that it has them for this Python and machine."
    )
