"""The host of what lies outside of a cluster: object storage, Redis and PostgreSQL."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Final

import httpx

from cluster.hosts.host import HostProcess, last_lines, wait_until
from cluster.hosts.network import Hosts

__all__ = ["Store"]

_ROOT: Final = Path(__file__).parents[2]
_S3_PORT: Final = 5000
_REDIS_PORT: Final = 6379
_SECONDS_TO_START: Final = 60.0


class Store:
    """A host that all others reach, with the servers that are started on it.

    Args:
        hosts: The hosts that it is added to.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.host = hosts.add("store")
        self.redis_password = secrets.token_hex(16)

    @property
    def endpoint(self) -> str:
        """URL of the S3 server, also from this machine."""
        return f"http://{self.host.address}:{_S3_PORT}"

    @property
    def redis_address(self) -> str:
        """Address of Redis, as Ray takes it."""
        return f"redis://{self.host.address}:{_REDIS_PORT}"

    def start_s3(self, *buckets: str) -> dict[str, str]:
        """Start moto's S3 server with empty buckets; return the variables for its callers."""
        started = self._start_module(
            "tests.support.s3_server", "--host", self.host.address, "--port", str(_S3_PORT)
        )
        _wait_for_lines(started, 1, "http://", "the S3 server does not start")
        for bucket in buckets:
            httpx.put(f"{self.endpoint}/{bucket}", timeout=30).raise_for_status()
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start_redis(self) -> None:
        """Start Redis with a password, which is in no process's arguments.

        Raises:
            RuntimeError: If it is not installed, or does not start.
        """
        if shutil.which("redis-server") is None:
            raise RuntimeError("Redis is not installed (Debian: apt-get install redis-server).")
        config = self.host.home / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind {self.host.address}\nport {_REDIS_PORT}\nrequirepass {self.redis_password}\n"
            "appendonly yes\ndir /home\n"
        )
        started = self.host.start("redis-server", "/home/redis.conf")
        _wait_for_lines(started, 1, "Ready to accept connections", "Redis does not start")

    def start_postgres(self) -> dict[str, str]:
        """Start PostgreSQL with databases for Eagleray and MLflow; return the settings for them."""
        started = self._start_module("tests.support.postgres", "--host", self.host.address)
        ours, mlflow = _wait_for_lines(started, 2, "postgresql://", "PostgreSQL does not start")
        return {
            "EAGLERAY_DATABASE_URL": ours,
            "EAGLERAY_TRACKING_URI": mlflow.replace("postgresql:", "postgresql+psycopg:"),
        }

    def _start_module(self, module: str, *words: str) -> HostProcess:
        """Start a server of the tests, whose modules are found in the checkout only."""
        script = 'cd "$1"; shift; exec python -m "$@"'
        return self.host.start("sh", "-c", script, "sh", str(_ROOT), module, *words)


def _wait_for_lines(process: HostProcess, count: int, text: str, fault: str) -> list[str]:
    """Wait until a server prints lines that contain a text, and return them."""

    def found() -> list[str]:
        return [line for line in process.text().splitlines(True) if text in line and "\n" in line]

    def are_there() -> bool:
        if not process.is_running:
            raise RuntimeError(f"{fault}: {last_lines(process.text())}")
        return len(found()) >= count

    wait_until(are_there, _SECONDS_TO_START, fault)
    return [line.strip() for line in found()]
