"""A service on a cluster of hosts whose head is killed; its gateway is a host of its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from cluster.hosts.host import HostProcess, wait_until
from eagleray.serving.callers.applications import Applications
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.serving_load import Load, steady_load
from tests.support.hosted import Hosted
from tests.support.models import golden_png, small_package
from tests.support.service import RunningService

__all__ = ["SERVICE_VARIABLES", "kill_heads_of_service"]

SERVICE_VARIABLES = {
    "EAGLERAY_GATEWAY_SECRET": secrets.token_hex(32),
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
}
"""Variables that the nodes of the service need."""

_DEPLOY = """
import sys, ray
from ray import serve
from eagleray.serve.declared import build
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
serve.start(proxy_location="Disabled")
service = {"models": ["digits"], "engine": "eager", "replicas": 2}
serve.run(build({"gateway": sys.argv[1], "service": service}), name="eagleray", route_prefix=None)
"""
_MODEL = "digits"
_RATE, _GRPC_RATE = 10.0, 2.0
_SECONDS_BEFORE, _SECONDS_AFTER = 5.0, 20.0


def kill_heads_of_service(hosted: Hosted, result: ScenarioResult, num_kills: int) -> None:
    """Kill the head under a steady load, start it again, and count the requests that failed."""
    with _running_gateway(hosted) as (service, key):
        load = asyncio.run(_kill_under_load(hosted, result, service, key, num_kills))
    result.counts["requests"] += len(load.sent)
    for failure, count in load.failures().items():
        result.counts[f"failed: {failure}"] += count
    result.add_note(
        f"{load.failures().total()} of {len(load.sent)} requests failed; the slowest response took "
        f"{load.slowest():.2f} s"
    )


async def _kill_under_load(
    hosted: Hosted, result: ScenarioResult, service: RunningService, key: str, num_kills: int
) -> Load:
    cluster = hosted.cluster
    async with steady_load(
        service, _MODEL, golden_png(7), rate=_RATE, grpc_rate=_GRPC_RATE, key=key
    ) as load:
        for _ in range(num_kills):
            await asyncio.sleep(_SECONDS_BEFORE)
            await asyncio.to_thread(cluster.head.kill)
            result.add_kill("the head")
            await asyncio.sleep(_SECONDS_BEFORE)
            await asyncio.to_thread(cluster.start_head)
            await asyncio.to_thread(cluster.wait_for_nodes, 1 + len(cluster.workers))
            await asyncio.sleep(_SECONDS_AFTER)
    return load


@contextmanager
def _running_gateway(hosted: Hosted) -> Iterator[tuple[RunningService, str]]:
    """Run a gateway on a host of its own, and two replicas on the cluster that join it."""
    node = hosted.cluster.workers[0].environment
    key = _register(hosted)
    gateway = hosted.hosts.add("gateway")
    gateway.environment |= {
        name: value for name, value in node.items() if not name.startswith("RAY_")
    }
    words = ["-P", "-m", "eagleray.serve.gateway.run", "--host", "0.0.0.0", "--port", "8000"]
    process = gateway.start("python", *words, "--grpc-port", "8001", "--join-port", "8002")
    service = RunningService(
        f"http://{gateway.address}:8000", f"{gateway.address}:8001", process.popen, process.log
    )
    try:
        hosted.cluster.head.run(
            "python", "-P", "-c", _DEPLOY, f"{gateway.address}:8002", seconds=180
        )
        _wait_until_it_predicts(service, key, process)
        yield service, key
    finally:
        gateway.kill()


def _register(hosted: Hosted) -> str:
    """Register a model and an application in the cluster's databases; return its key."""
    with hosted.registry() as registry:
        registry.register(small_package(golden_images=[golden_png(0)]))
        registry.set_alias(_MODEL, "production", 1)
        return Applications(registry.history.database, actor="chaos").create("shop").key


def _wait_until_it_predicts(service: RunningService, key: str, process: HostProcess) -> None:
    def predicts() -> bool:
        assert process.is_running, process.text()[-2000:]
        try:
            response = httpx.post(
                f"{service.url}/v1/models/{_MODEL}/predict",
                content=golden_png(7),
                headers={"Authorization": f"Bearer {key}"},
            )
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    wait_until(predicts, 120, "the service does not predict")
