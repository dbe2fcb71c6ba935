"""Fixtures of all tests: one Ray for those that need it, and a home of its own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import hypothesis
import pytest

from eagleray.core.ray_session import Cluster, ray_session
from eagleray.core.settings import Settings
from tests.support.killers import killer_environment
from tests.support.postgres import postgres
from tests.support.s3_server import moto_server

__all__ = ["postgres"]

# Slow machines do not fail.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _home_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep every test away from the user's registry and caches."""
    for name in ("TRACKING_URI", "ARTIFACT_ROOT", "DATABASE_URL", "USER", "RAY_ADDRESS"):
        monkeypatch.delenv(f"EAGLERAY_{name}", raising=False)
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")


@pytest.fixture(autouse=True)
def _rounding_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With EAGLERAY_TEST_ROUNDING=by-place, predictors round as on CPUs with other kernels."""
    if os.environ.get("EAGLERAY_TEST_ROUNDING") == "by-place":
        from tests.support.numerics import make_all_round_by_place

        make_all_round_by_place(monkeypatch)


@pytest.fixture(autouse=True)
def _leave_no_s3_options_behind() -> Iterator[None]:
    """Remove the S3 options of a job, which are global to the process."""
    yield
    fsspec.config.conf.pop("s3", None)


@pytest.fixture
def killers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let marked images kill the processes that decode them, but not this one."""
    for name, value in killer_environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start an S3 server in a process of its own; return the URI of a bucket.

    The environment names it, so that every process started later reaches it.
    """
    with moto_server() as endpoint:
        os.environ |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import s3fs

        s3fs.S3FileSystem().mkdir("pictures")
        yield "s3://pictures"


@pytest.fixture(scope="session")
def cluster(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a Ray for all tests, whose workers reach the S3 server."""
    home = Path(tmp_path_factory.mktemp("cluster"))
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # its workers import tests
    with ray_session(Settings(home=home)) as session:
        yield session
