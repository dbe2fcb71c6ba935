"""Calls every path and every method of TCP ports, with no, a wrong and the right token.

    python -P tests/support/port_probe.py < request.json > answers.json

The request has `ports` (pairs of host and port) and `token`. It runs on one host and calls others,
so it imports nothing of the checkout. With the right token only what changes nothing is called.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import re
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import ray

PATH_OF_RAY = Path(ray.__file__).parent
PROGRAMS = ("core/src/ray/gcs/gcs_server", "core/src/ray/raylet/raylet")
HARMLESS = ("/", "/api/version", "/api/jobs/", "/api/healthz", "/metrics")
HARMLESS_METHODS = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.RayletDriver/ClusterInfo",
)
ENDS_THE_SERVER = "/ray.rpc.syncer.RaySyncer/StartSync"
"""Method that ends Ray's control store or node manager when it is called without a node's number,
which Ray 2.60 reads before the token."""
SECONDS = 5.0


@functools.cache
def http_requests() -> list[tuple[str, str]]:
    """Return the methods and paths of Ray's servers, as its own sources name them."""
    found = {("GET", "/"), ("GET", "/metrics"), ("GET", "/-/healthz"), ("GET", "/-/routes")}
    for file in (PATH_OF_RAY / "dashboard").rglob("*.py"):
        for method, path in re.findall(
            r"[rR]oute\w*\.(get|post|put|delete)\(\s*\"(/[^\"]*)\"", file.read_text()
        ):
            found.add((method.upper(), re.sub(r"\{[^}]*\}", "x", path)))
    return sorted(found)


@functools.cache
def grpc_methods() -> list[str]:
    """Return the methods of Ray's gRPC servers, as its programs name them, and of gRPC's own."""
    found = {"/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/Info"}
    for program in PROGRAMS:
        names = re.findall(
            rb"/ray\.rpc\.[A-Za-z.]+/[A-Za-z]+", (PATH_OF_RAY / program).read_bytes()
        )
        found |= {name.decode() for name in names}
    client = ("ClusterInfo", "Init", "PrepRuntimeEnv", "KVGet", "ListNamedActors", "Schedule")
    found |= {f"/ray.rpc.RayletDriver/{name}" for name in client}
    return sorted(found - {ENDS_THE_SERVER})


def call_http(host: str, port: int, token: str | None) -> dict[str, list[str]]:
    """Return the paths by what they answered; empty if the port does not speak HTTP."""
    answers: dict[str, list[str]] = defaultdict(list)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for method, path in http_requests():
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        try:
            connection.request(method, path, headers=headers)
            answers[str(connection.getresponse().status)].append(f"{method} {path}")
        except (OSError, http.client.HTTPException):
            if not answers:
                return {}
            answers["closed"].append(f"{method} {path}")
        finally:
            connection.close()
    return dict(answers)


def call_grpc(
    host: str, port: int, token: str | None, *, all_methods: bool
) -> dict[str, list[str]]:
    """Return the methods by their status; empty if the port does not speak gRPC."""
    answers: dict[str, list[str]] = defaultdict(list)
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"{host}:{port}", options=options) as channel:
        for method in grpc_methods() if all_methods else HARMLESS_METHODS:
            status = "OK"
            try:
                channel.unary_unary(method)(b"", timeout=SECONDS, metadata=metadata)
            except grpc.RpcError as error:
                status = str(error.code().name)
            if status == "UNAVAILABLE" and not answers:
                return {}
            answers[status].append(method)
    return dict(answers)


def call_right(host: str, port: int, token: str) -> dict[str, list[str]]:
    """Return what harmless paths answer with the token."""
    answers: dict[str, list[str]] = defaultdict(list)
    for path in HARMLESS:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answers[str(connection.getresponse().status)].append(f"GET {path}")
        connection.close()
    return dict(answers)


def probe(host: str, port: int, token: str) -> dict[str, Any]:
    """Call a port in all ways."""
    wrong = "0" * len(token)
    return {
        "http": {
            "none": call_http(host, port, None),
            "wrong": call_http(host, port, wrong),
            "right": call_right(host, port, token),
        },
        "grpc": {
            "none": call_grpc(host, port, None, all_methods=True),
            "wrong": call_grpc(host, port, wrong, all_methods=True),
            "right": call_grpc(host, port, token, all_methods=False),
        },
    }


def main() -> None:
    request = json.load(sys.stdin)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda at: probe(at[0], at[1], request["token"]), request["ports"])
        json.dump(list(found), sys.stdout)


if __name__ == "__main__":
    main()
