"""The switch that hosts on this machine are connected to; this machine is connected to it too."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import psutil

from cluster.hosts.host import Host

__all__ = ["Hosts", "missing_requirement"]

_SWITCH = """
set -e
ip link set lo up
ip link add switch type bridge forward_delay 0
ip link set switch up
echo ready
while read -r _; do :; done
"""
_FOLDERS = Path("/var/tmp")  # noqa: S108 - each folder in it has a random name
_PREFIX = "eagleray-hosts-"
_TOOLS = ("ip", "nsenter", "ss", "sshd", "unshare")
_NETWORKS = [f"198.18.{number}" for number in range(256)]  # reserved for benchmarks (RFC 2544)


def missing_requirement() -> str | None:
    """Return why this machine can have no hosts, in a sentence; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "Hosts on one machine need Linux and root."
    for place in (Path(__file__), Path(sys.prefix)):
        if place.is_relative_to("/tmp"):  # noqa: S108 - what hosts do not see is meant
            return f"{place} lies below /tmp, and each host has a /tmp of its own; move it."
    path = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
    if missing := [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]:
        packages = "iproute2 openssh-server util-linux"
        return f"Not installed: {', '.join(missing)} (Debian: apt-get install {packages})."
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "ip", "link"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"No namespaces here: {tried.stderr.strip()}."


class Hosts:
    """A switch with hosts, until the end of the block; then nothing of them is left.

    Args:
        environment: Variables of the commands on every host.
        keep: Keep the folder with the disks and logs of the hosts, and say where it is.

    Raises:
        RuntimeError: If this machine can have no hosts.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, keep: bool = False) -> None:
        if reason := missing_requirement():
            raise RuntimeError(reason)
        self.remove_leftovers()
        self.environment, self._keep = dict(environment or {}), keep
        # Not below /tmp, which hosts do not see.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_FOLDERS))
        self._hosts: dict[str, Host] = {}
        self._num_plugged = 0
        self._names = self.folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        self._switch = subprocess.Popen(
            ["unshare", "--net", "bash", "-c", _SWITCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert self._switch.stdout is not None
            if self._switch.stdout.readline() != "ready\n":
                raise RuntimeError("the switch does not start; see the messages above")
            self._network = _free_network()
            self.gateway = f"{self._network}.1"
            self._connect_this_machine()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(list(self._hosts.values()))

    def add(self, name: str) -> Host:
        """Boot another host, which all know by its name."""
        address = f"{self._network}.{len(self._hosts) + 2}"
        with self._names.open("a") as file:
            file.write(f"{address} {name}\n")
        host = Host(
            name,
            address,
            self.folder / name,
            self._names,
            plug=self._plug,
            switch=self._run,
            environment=self.environment,
        )
        self._hosts[name] = host
        host.boot()
        return host

    @staticmethod
    def remove_leftovers() -> None:
        """Remove the folders of harnesses that were killed; only a folder can be left of one."""
        for folder in _FOLDERS.glob(f"{_PREFIX}*-*"):
            pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End every host and the switch, and remove their folder."""
        for host in self._hosts.values():
            host.kill()
        self._switch.kill()
        self._switch.wait()
        for pipe in (self._switch.stdin, self._switch.stdout):
            assert pipe is not None
            pipe.close()
        if self._keep:
            kept = self.folder.rename(_FOLDERS / f"kept-{self.folder.name}")
            sys.stderr.write(f"the folder of the hosts is kept: {kept}\n")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _connect_this_machine(self) -> None:
        name = f"eagle{secrets.token_hex(4)}"  # at most 15 characters
        _ip("link", "add", name, "type", "veth", "peer", "name", "p0", "netns", self._netns)
        _ip("address", "add", f"{self.gateway}/24", "dev", name)
        _ip("link", "set", name, "up")
        self._run("ip", "link", "set", "p0", "master", "switch", "up")

    def _plug(self, pid: int, address: str) -> str:
        """Connect the network of a process, with an address and a default route."""
        self._num_plugged += 1
        port = f"p{self._num_plugged}"
        self._run(
            "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid)
        )
        self._run("ip", "link", "set", port, "master", "switch", "up")
        for words in (
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", self.gateway),
        ):
            _call("nsenter", "--target", str(pid), "--net", "ip", *words)
        return port

    @property
    def _netns(self) -> str:
        return str(self._switch.pid)

    def _run(self, *words: str) -> None:
        """Run a command in the network of the switch."""
        _call("nsenter", "--target", self._netns, "--net", *words)


def _free_network() -> str:
    """Return the first three numbers of a network that this machine has no address in."""
    taken = {
        address.address.rpartition(".")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
    }
    start = os.getpid() % len(_NETWORKS)
    with contextlib.suppress(StopIteration):
        return next(one for one in _NETWORKS[start:] + _NETWORKS[:start] if one not in taken)
    raise RuntimeError("this machine has an address in every network 198.18.0.0 to 198.18.255.0")


def _ip(*words: str) -> None:
    _call("ip", *words)


def _call(*words: str) -> None:
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{' '.join(words)}: {found.stderr.strip()}")
