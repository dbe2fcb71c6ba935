"""A folder on each kind of storage."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, on this machine and behind a URI."""
    return str(tmp_path / "f") if request.param == "local" else f"memory://{tmp_path}/f"
