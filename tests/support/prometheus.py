"""A Prometheus with the configuration of `cluster/monitoring`, and its answers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from eagleray.core.system import free_port
from tests.support.manifests import ROOT, tool
from tests.support.service import until

__all__ = ["MONITORING", "Prometheus", "panels", "rules", "running_prometheus"]

MONITORING = ROOT / "cluster/monitoring"


def rules() -> list[dict[str, Any]]:
    """Return all alert rules."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Return the panels of all dashboards, each with the name of its dashboard."""
    files = sorted((MONITORING / "dashboards").glob("*.json"))
    assert len(files) == 3
    return [
        (file.stem, panel) for file in files for panel in json.loads(file.read_text())["panels"]
    ]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        url: Of its API.
        started: When it started, in seconds since the epoch.
    """

    url: str
    started: float

    def has_data(self, expression: str) -> bool:
        """Whether an expression has had a value at any moment since the start."""
        span: dict[str, Any] = {"start": self.started, "end": time.time(), "step": 1}
        response = httpx.post(
            f"{self.url}/api/v1/query_range", data={"query": expression, **span}, timeout=30
        )
        assert response.is_success, response.text
        values = [
            float(value)
            for series in response.json()["data"]["result"]
            for _, value in series["values"]
        ]
        return any(value == value for value in values)  # NaN is none

    def wait_until_scraped(self, *jobs: str, seconds: float = 60) -> None:
        """Wait until all targets of these scrape configurations, and one of each, respond."""
        deadline = time.monotonic() + seconds
        while (found := self._targets()) != {name: {"up "} for name in jobs}:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def _targets(self) -> dict[str, set[str]]:
        active = httpx.get(f"{self.url}/api/v1/targets").json()["data"]["activeTargets"]
        found: dict[str, set[str]] = {}
        for target in active:
            state = f"{target['health']} {target['lastError']}"
            found.setdefault(target["labels"]["job"], set()).add(state)
        return found


@contextlib.contextmanager
def running_prometheus(
    folder: Path, *, service: str, key: str, gateway: str, ray: str, token: str
) -> Iterator[Prometheus]:
    """Run Prometheus with our configuration, which scrapes every second here.

    Args:
        folder: Folder for its files.
        service: Address of the service.
        key: Key of an application.
        gateway: Address of HAProxy's metrics.
        ray: Address of the head's dashboard.
        token: Token of the cluster.
    """
    text = (MONITORING / "prometheus.yml").read_text().replace("15s", "1s")
    for ours, theirs in {"8000": service, "9101": gateway, "8265": ray}.items():
        assert text.count(f"127.0.0.1:{ours}/") + text.count(f'["127.0.0.1:{ours}"]') == 1
        text = text.replace(f"127.0.0.1:{ours}/", f"{theirs}/")
        text = text.replace(f'["127.0.0.1:{ours}"]', f'["{theirs}"]')
    (folder / "secrets").mkdir(parents=True)
    (folder / "secrets/service-key").write_text(key)
    (folder / "secrets/ray-token").write_text(token)
    (folder / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
    (folder / "prometheus.yml").write_text(text)
    address = f"127.0.0.1:{free_port()}"
    command = [tool("prometheus"), f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    log = folder / "prometheus.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            until(lambda: process.poll() is not None or _is_ready(f"http://{address}"))
            assert process.poll() is None, log.read_text()
            yield Prometheus(f"http://{address}", time.time())
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").is_success
    except httpx.TransportError:
        return False
