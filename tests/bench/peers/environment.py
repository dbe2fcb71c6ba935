"""An interpreter for the peers that the project does not depend on: its packages, and theirs.

python -m tests.bench.peers.environment FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

__all__ = ["peers_python"]

_REQUIREMENTS = Path(__file__).parents[1] / "requirements-peers.txt"


def peers_python(folder: Path) -> Path:
    """Return the interpreter of a virtual environment, made when it is not there.

    It sees every package of the interpreter that runs this, and changes none of them.

    Args:
        folder: Of the environment.
    """
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if ready.exists() and ready.read_text() == _REQUIREMENTS.read_text():
        return python
    venv.create(folder, with_pip=True, clear=True)
    site_packages = sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})
    Path(site_packages, "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(_REQUIREMENTS)], check=True)
    ready.write_text(_REQUIREMENTS.read_text())
    return python


if __name__ == "__main__":
    print(peers_python(Path(sys.argv[1]).resolve()))
