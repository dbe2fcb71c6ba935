"""A Ray cluster whose own autoscaler adds nodes and removes them, all on this machine.

Ray's `AutoscalingCluster` does the same, but needs a file that the wheel lacks, and ends every Ray
of the machine when it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from eagleray.core.system import free_port
from tests.support.processes import end_orphans, family, titled

ROOT = Path(__file__).parents[2]
_SECONDS_TO_START = 120
_IDLE_MINUTES = 0.1
_OBJECT_STORE = 80 * 2**20  # bytes of a node; Ray takes no less

CPU_NODES: Mapping[str, Any] = {"cpu": {"resources": {"CPU": 1}, "max_workers": 3}}
GPU_NODES: Mapping[str, Any] = {"gpu": {"resources": {"CPU": 1, "GPU": 1}, "max_workers": 3}}


@dataclass
class GrowingCluster:
    """A running cluster.

    Attributes:
        address: Address of its head.
        environment: Environment of a process that joins it.
        sizes: The number of nodes without the head, with the seconds since the start, whenever it
            changed.
    """

    address: str
    environment: dict[str, str]
    _process: subprocess.Popen[bytes]
    _started: float = field(default_factory=time.monotonic)
    sizes: list[tuple[float, int]] = field(default_factory=list)

    def look(self) -> int:
        """Note the number of nodes, and return it."""
        size = len(titled(family(self._process.pid), "raylet/raylet")) - 1
        if not self.sizes or self.sizes[-1][1] != size:
            self.sizes.append((round(time.monotonic() - self._started, 1), size))
        return size

    def await_size(self, size: int, seconds: float = 90.0) -> None:
        """Wait until there are so many nodes."""
        deadline = time.monotonic() + seconds
        while self.look() != size:
            assert time.monotonic() < deadline, self.sizes
            time.sleep(0.1)

    def run(self, command: list[str], seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run a Python program to its end, and note the number of nodes meanwhile."""
        with subprocess.Popen(
            [sys.executable, "-P", *command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            deadline = time.monotonic() + seconds
            while process.poll() is None:
                if time.monotonic() > deadline:
                    process.kill()
                self.look()
                time.sleep(0.1)
            assert process.stdout is not None
            printed = process.stdout.read()
        return subprocess.CompletedProcess(command, process.returncode, printed, "")


@contextlib.contextmanager
def growing_cluster(folder: Path, node_types: Mapping[str, Any]) -> Iterator[GrowingCluster]:
    """Start a head without cores that has an autoscaler; end both and all nodes afterwards.

    Args:
        folder: Folder for its files.
        node_types: `available_node_types` of Ray's configuration, without the head's.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(_config(address, node_types)))
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), str(ROOT)]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "EAGLERAY_HOME": str(folder / "home"),
    }
    of_head = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    command = [str(programs / "ray"), "start", "--head", "--block", "--include-dashboard=false"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "0"]
    command += ["--num-gpus", "0", "--object-store-memory", str(_OBJECT_STORE)]
    command += ["--temp-dir", f"/tmp/ray-{secrets.token_hex(3)}"]  # sockets have short paths
    command += [f"--autoscaling-config={config}"]
    with (
        (folder / "head.log").open("w") as log,
        subprocess.Popen(
            command,
            env={**environment, **of_head},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        started: list[psutil.Process] = []
        try:
            cluster = GrowingCluster(address, environment, process)
            _await_monitor(process)
            yield cluster
        finally:
            started = family(process.pid)
            process.send_signal(signal.SIGTERM)
            end_orphans(started, seconds=10)


def _await_monitor(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not titled(family(process.pid), "raylet/raylet") or not titled(
        family(process.pid), "monitor.py"
    ):
        assert process.poll() is None, "the head ended while it started"
        assert time.monotonic() < deadline, "the head does not start"
        time.sleep(0.2)
    time.sleep(2)  # the raylet joins; a driver would try again for longer


def _config(address: str, node_types: Mapping[str, Any]) -> dict[str, Any]:
    head = {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}}
    nodes = {
        name: {
            "min_workers": 0,
            "node_config": {},
            **entry,
            "resources": {"object_store_memory": _OBJECT_STORE, **entry["resources"]},
        }
        for name, entry in node_types.items()
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup")
    starts = ("head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "growing",
        "max_workers": sum(entry["max_workers"] for entry in node_types.values()),
        "upscaling_speed": 10,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,  # the nodes have one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in (*commands, *starts)},
        "head_node_type": "ray.head.default",
        "available_node_types": {**head, **nodes},
    }
