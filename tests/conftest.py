"""Parts that tests share: one Ray for all tests that need one, and a home of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.cluster import Cluster, ray_session
from eagleray.settings import Settings


@pytest.fixture(autouse=True)
def _home_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep every test away from the registry and caches of whoever runs it."""
    for name in ("EAGLERAY_TRACKING_URI", "EAGLERAY_ARTIFACT_ROOT", "EAGLERAY_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray of our own, started once."""
    home = Path(tmp_path_factory.mktemp("cluster"))
    with ray_session(Settings(home=home)) as session:
        yield session
