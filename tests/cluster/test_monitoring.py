"""Monitoring: rules that fire when they should, and queries that a running system answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import s3fs
import yaml
from PIL import Image

from eagleray.core.job_metrics import METRICS
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.core.system import free_port
from eagleray.database.store import open_database
from eagleray.scheduling.records import JobRecords, new_job
from eagleray.serving.callers.applications import Applications
from tests.support.manifests import ROOT, tool
from tests.support.models import golden_png
from tests.support.prometheus import MONITORING, Prometheus, panels, rules, running_prometheus
from tests.support.ray_head import Head
from tests.support.service import running_service, until
from tests.support.serving import registry_with

EAGLERAY = [sys.executable, "-P", "-m", "eagleray"]
COMPARISON = re.compile(r"\s(>|<)\s[0-9.]+$")
GPU = "ray_node_gpus_utilization"
"""A metric that only a node with a GPU has."""


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["test", "rules", "alerts_test.yml"], ["check", "rules", "alerts.yml"]]
)
def test_promtool_accepts_the_rules_and_their_tests(command: list[str]) -> None:
    said = subprocess.run(
        [tool("promtool"), *command], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "SUCCESS" in said.stdout


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_prometheus_accepts_its_configurations(name: str, tmp_path: Path) -> None:
    text = (MONITORING / name).read_text()
    # Debian's Prometheus is built without the discovery of pods.
    found = re.subn(r"kubernetes_sd_configs: .*", "static_configs: [{targets: [x]}]", text)
    assert (found[1] == 2) == ("kubernetes" in name)
    (tmp_path / name).write_text(found[0])
    command = [tool("promtool"), "check", "config", "--syntax-only", str(tmp_path / name)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_on_kubernetes_the_rules_are_an_object_that_one_command_makes() -> None:
    page = (ROOT / "cluster/README.md").read_text()
    command = page[page.index("(printf") : page.index("|\n  kubectl apply")]
    said = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    made = yaml.safe_load(said.stdout)
    assert (made["kind"], made["metadata"]["namespace"]) == ("PrometheusRule", "eagleray")
    assert made["spec"] == yaml.safe_load((MONITORING / "alerts.yml").read_text())


def test_every_alert_has_a_test_and_a_section_that_says_what_to_do() -> None:
    tested = (MONITORING / "alerts_test.yml").read_text()
    for rule in rules():
        name = rule["alert"]
        assert f"alertname: {name}\n        exp_alerts:\n" in tested, name
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor == name.lower()
        assert re.search(rf"^#+ {name}$", (ROOT / page).read_text(), re.MULTILINE), name
        assert COMPARISON.search(rule["expr"].strip()), name
        assert rule["labels"]["severity"] in ("page", "warn")


def test_panels_have_queries_and_places_of_their_own() -> None:
    taken: set[tuple[str, int, int]] = set()
    for name, panel in panels():
        place = panel["gridPos"]
        cells = {
            (name, x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    ids = [(name, panel["id"]) for name, panel in panels()]
    assert len(set(ids)) == len(ids)


def test_every_metric_of_jobs_is_shown() -> None:
    text = "".join(file.read_text() for file in (MONITORING / "dashboards").glob("*.json"))
    assert set(re.findall(r"ray_eagleray_job_(\w+)", text)) == set(METRICS)


# --- a running system -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def observed(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run a service, a batch job and a training job, and have Prometheus watch them."""
    folder = tmp_path_factory.mktemp("monitoring")
    key = _prepare_service(folder)
    gateway = f"127.0.0.1:{free_port()}"
    words = ["digits", "--engine", "eager", "--metrics-address", gateway]
    with (
        running_service(folder / "home", *words) as service,
        running_prometheus(
            folder / "prometheus",
            service=service.url.removeprefix("http://"),
            key=key,
            gateway=gateway,
            ray=head.address.removeprefix("ray-jobs+http://"),
            token=head.token_file.read_text(),
        ) as prometheus,
    ):
        prometheus.wait_until_scraped("eagleray-service", "eagleray-gateway", "ray")
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=service.url, headers=headers) as caller:
            _call(caller)
            _run_jobs(folder, head)
            _call(caller)  # a rate needs a change between two scrapes
        until(lambda: prometheus.has_data("changes(eagleray_requests_total[1m]) > 0"))
        yield prometheus


def _prepare_service(folder: Path) -> str:
    """Make a registry, jobs that are lost and that wait, and return the key of the scraper."""
    registry_with(folder, "digits")
    settings = Settings(home=folder / "home")
    database = open_database(settings)
    records = JobRecords(database, settings)
    before = datetime.now(UTC) - timedelta(hours=2)
    jobs: dict[str, dict[str, Any]] = {
        "waits": {"created": before},
        "lost": {"state": JobState.RUNNING.value, "lease_until": before},
    }
    for name, fields in jobs.items():
        records.add(new_job(id=name, program="predict", owner="ada", **fields))
    return Applications(database, actor="test").create("prometheus").key


def _call(caller: httpx.Client) -> None:
    for _ in range(5):
        predicted = caller.post("/v1/models/digits/predict", content=golden_png(0))
        assert predicted.status_code == 200, predicted.text
    assert caller.post("/v1/models/digits/predict", content=b"no image").status_code >= 400


def _run_jobs(folder: Path, head: Head) -> None:
    photos = folder / "photos"
    generator = np.random.default_rng(0)
    for number in range(200):
        place = photos / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    training = ["--name", "noise", "--architecture", "lenet5", "--epochs", "3", "--workers", "1"]
    s3fs.S3FileSystem(
        key="test", secret="test", endpoint_url=head.storage["AWS_ENDPOINT_URL"]
    ).makedirs("monitored", exist_ok=True)
    token = ["--token-file", str(head.token_file)]
    _eagleray(folder, head, "cluster", "add", "here", head.address, *token)
    _eagleray(folder, head, "train", str(photos), *training, "--cluster", "here")
    (photos / "broken.png").write_bytes(b"no image")
    words = ["--model", "random:lenet5", "--engine", "eager", "--output", "s3://monitored/results"]
    _eagleray(folder, head, "predict", str(photos), *words, "--cluster", "here")


def _eagleray(folder: Path, head: Head, *words: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    said = subprocess.run(
        [*EAGLERAY, *words],
        env={**kept, **head.storage, "EAGLERAY_HOME": str(folder / "operator"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-3000:]


def _queries() -> Iterator[tuple[str, str]]:
    for name, panel in panels():
        for target in panel["targets"]:
            expression = re.sub(r'"\$\w+"', '".*"', target["expr"])
            where = f"{name}: {panel['title']}, {target['refId']}"
            yield where, expression.replace("$__rate_interval", "30s")
    for rule in rules():
        yield f"alert {rule['alert']}", COMPARISON.sub("", rule["expr"].strip())


def test_every_query_of_dashboards_and_alerts_returns_data(observed: Prometheus) -> None:
    queries = dict(_queries())
    if shutil.which("nvidia-smi") is None:
        queries = {where: query for where, query in queries.items() if GPU not in query}
    assert len(queries) > 60
    empty = [where for where, query in queries.items() if not observed.has_data(query)]
    assert empty == []


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="this machine has no GPU")
def test_the_use_of_gpus_is_measured(observed: Prometheus) -> None:
    assert observed.has_data(GPU)


def test_a_lost_and_a_waiting_job_raise_their_alerts(observed: Prometheus) -> None:
    alerts = {rule["alert"]: rule["expr"] for rule in rules()}
    assert observed.has_data(alerts["JobLost"])
    assert observed.has_data(alerts["JobsWait"])
    assert not observed.has_data(alerts["NoReplica"])
