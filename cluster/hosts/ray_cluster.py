"""A Ray cluster on hosts, started as on machines of one's own, and a client outside of it."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from cluster.hosts.host import Host, HostProcess, last_lines, wait_until
from cluster.hosts.network import Hosts
from cluster.hosts.store import Store

__all__ = ["RayCluster", "Storage"]

Storage = Literal["memory", "redis", "rocksdb"]
"""Where Ray's control store keeps its state: nowhere, in Redis, or on a disk of the head."""

_SSHD: Final = "/usr/sbin/sshd"
_PORT: Final = 8265
_TOKEN_FILE: Final = "/home/.ray/auth_token"  # noqa: S105 - a path
_OBJECT_STORE_BYTES: Final = 100_000_000
_SECONDS_TO_START: Final = 120.0
_GET: Final = """
import sys, urllib.request
url, token = sys.argv[1], open(sys.argv[2]).read()
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""
_TUNNEL: Final = """
while true; do
  ssh -F none -N -i /home/key -o BatchMode=yes -o ExitOnForwardFailure=yes -o ConnectTimeout=5 \
    -o ServerAliveInterval=2 -o ServerAliveCountMax=2 -o UserKnownHostsFile=/home/known_hosts \
    -L "127.0.0.1:$1:127.0.0.1:$1" root@head
  sleep 0.5
done
"""
_SSHD_CONFIG: Final = """
HostKey /home/ssh_host_key
AuthorizedKeysFile /home/authorized_keys
ListenAddress {address}
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
StrictModes no
UsePAM no
"""


class RayCluster:
    """A head and workers, and a client whose only way to them is a tunnel to the head's job server.

    Its token is on the nodes, and in a file of the client.

    Args:
        hosts: The hosts that it adds its own to: `head`, `worker-1`, …, `client`.
        store: The servers outside of it; needed for Redis.
        num_workers: Number of workers.
        storage: Where Ray's control store keeps its state.
        cpus_per_worker: Number of cores that a worker offers.
        environment: Variables of Ray and of the commands on its nodes.

    Raises:
        RuntimeError: If an SSH server is not installed.
    """

    def __init__(
        self,
        hosts: Hosts,
        store: Store,
        *,
        num_workers: int = 3,
        storage: Storage = "memory",
        cpus_per_worker: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if shutil.which(_SSHD) is None:
            raise RuntimeError("No SSH server (Debian: apt-get install openssh-server).")
        self._storage, self._store, self._cpus = storage, store, cpus_per_worker
        self._disk = hosts.folder / "head-disk"
        self._disk.mkdir()
        self.token = secrets.token_hex(32)
        self.head = hosts.add("head")
        self.workers = [hosts.add(f"worker-{number + 1}") for number in range(num_workers)]
        self._hosts = hosts
        self._started: dict[str, HostProcess] = {}
        self._variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_FILE_PATH": _TOKEN_FILE}
        for node in (self.head, *self.workers):
            node.environment |= {**self._variables, **(environment or {})}
            _write_secret(node, ".ray/auth_token", self.token)
        _make_key(self.head, "ssh_host_key")
        config = _SSHD_CONFIG.format(address=self.head.address)
        (self.head.home / "sshd_config").write_text(config)
        self.client = self.add_client("client")

    def start(self) -> None:
        """Start Ray on all nodes; return when all are there."""
        self.start_head()
        for worker in self.workers:
            self.start_worker(worker)
        self.wait_for_nodes(1 + len(self.workers))

    def add_client(self, name: str) -> Host:
        """Add a host outside of the cluster, which has a tunnel to the head and the token."""
        client = self._hosts.add(name)
        _write_secret(client, "token", self.token)
        _make_key(client, "key")
        with (self.head.home / "authorized_keys").open("a") as file:
            file.write((client.home / "key.pub").read_text())
        host_key = (self.head.home / "ssh_host_key.pub").read_text()
        (client.home / "known_hosts").write_text(f"head {host_key}")
        client.start("bash", "-c", _TUNNEL, "bash", str(_PORT))
        return client

    def add_profile(self, name: str, client: Host | None = None) -> None:
        """Give the cluster a name on a client, as its user does."""
        address = f"ray-jobs+http://127.0.0.1:{_PORT}"
        words = ["cluster", "add", name, address, "--token-file", "/home/token"]
        (client or self.client).run("eagleray", *words)

    def start_head(self) -> float:
        """Boot the head if need be, and start Ray on it; return the seconds until it responds."""
        started = time.monotonic()
        if not self.head.is_up:
            self.head.boot()
        self.head.run("mkdir", "-p", "/run/sshd")
        self.head.start(_SSHD, "-D", "-e", "-f", "/home/sshd_config")
        words = ["--head", "--port=6379", "--num-cpus=0", "--num-gpus=0"]
        words += ["--dashboard-host=127.0.0.1", *self._storage_options()]
        self._start_ray(self.head, words, self._storage_variables())
        wait_until(self._responds, _SECONDS_TO_START, "the head does not respond")
        return time.monotonic() - started

    def start_worker(self, worker: Host) -> None:
        """Boot a worker if need be, and start Ray on it."""
        if not worker.is_up:
            worker.boot()
        words = [f"--address={self.head.address}:6379", f"--num-cpus={self._cpus}", "--num-gpus=0"]
        self._start_ray(worker, words, {})

    def drain(self, node: Host, *, seconds: float = 120.0) -> float:
        """End Ray on a node as an operator or a cloud does, with SIGTERM; return how long it took.

        Raises:
            subprocess.TimeoutExpired: If it has not ended in time.
        """
        started = time.monotonic()
        process = self._started[node.name]
        process.send_signal(signal.SIGTERM)
        process.wait(seconds)
        return time.monotonic() - started

    def ray_log(self, node: Host) -> str:
        """Return what the last `ray start` of a node has printed."""
        return self._started[node.name].text()

    def get(self, path: str) -> Any:
        """Return what the head's dashboard has at a path.

        Raises:
            RuntimeError: If it does not respond.
        """
        url = f"http://127.0.0.1:{_PORT}{path}"
        return json.loads(self.head.run("python", "-S", "-c", _GET, url, _TOKEN_FILE).stdout)

    def wait_for_nodes(self, count: int, seconds: float = _SECONDS_TO_START) -> None:
        """Wait until so many nodes are alive, the head included."""

        def are_there() -> bool:
            try:
                return self.num_nodes() == count
            except RuntimeError:
                return False

        wait_until(are_there, seconds, f"there are not {count} nodes")

    def num_nodes(self) -> int:
        """Return how many nodes Ray counts as alive."""
        nodes = self.get("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def _start_ray(self, node: Host, words: Sequence[str], variables: Mapping[str, str]) -> None:
        common = ["--block", "--disable-usage-stats", "--object-manager-port=8076"]
        common += ["--metrics-export-port=8080"]
        common += [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        self._started[node.name] = node.start("ray", "start", *words, *common, **variables)

    def _responds(self) -> bool:
        process = self._started[self.head.name]
        if not process.is_running:
            raise RuntimeError(f"Ray on the head ended: {last_lines(process.text(), 20)}")
        try:
            self.get("/api/jobs/")
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def _storage_options(self) -> list[str]:
        return (
            [f"--redis-password={self._store.redis_password}"] if self._storage == "redis" else []
        )

    def _storage_variables(self) -> dict[str, str]:
        if self._storage == "redis":
            return {"RAY_REDIS_ADDRESS": self._store.redis_address}
        if self._storage == "rocksdb":
            return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self._disk)}
        return {}


def _make_key(host: Host, name: str) -> None:
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"/home/{name}")


def _write_secret(host: Host, name: str, content: str) -> None:
    file = host.home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(content)
