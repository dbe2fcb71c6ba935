"""Hosts on one machine: each is its own, can be cut off and killed, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.hosts import Host, Hosts, missing_requirement
from cluster.hosts.host import wait_until

ROOT = Path(__file__).parents[2]
SERVER = """
import socket, time
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)
"""
KILLED = """
import os, signal, sys
from cluster.hosts import Hosts
from cluster.hosts.host import wait_until
hosts = Hosts()
host = hosts.add("one")
host.start("sleep", "1000")
wait_until(lambda: len(host.processes()) == 2, 10, "it sleeps")
print(hosts.gateway, *(one.pid for one in host.processes()), flush=True)
print(hosts.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := missing_requirement():
        pytest.skip(reason)
    with Hosts({"SHARED": "yes"}) as running:
        running.add("one")
        running.add("two")
        yield running


@pytest.fixture
def one(hosts: Hosts) -> Host:
    return hosts["one"]


@pytest.fixture
def two(hosts: Hosts) -> Host:
    return hosts["two"]


def test_each_has_a_name_processes_and_files_of_its_own(one: Host, two: Host) -> None:
    one.run("sh", "-c", "echo mine > /tmp/mark; echo mine > /dev/shm/mark; echo mine > /home/mark")
    assert one.run("hostname").stdout == "one\n"
    for folder in ("/tmp", "/dev/shm", "/home"):
        assert "mark" not in two.run("ls", folder).stdout
    one.start("sleep", "1000")
    wait_until(lambda: "sleep" in one.run("ps", "-A").stdout, 10, "it sleeps")
    assert "sleep" not in two.run("ps", "-A").stdout
    assert two.run("sh", "-c", "echo $SHARED $HOME").stdout == "yes /home\n"


def test_a_command_that_fails_says_where_and_why(one: Host) -> None:
    with pytest.raises(RuntimeError, match=r"ls /nowhere on one ended with exit code 2: .*No such"):
        one.run("ls", "/nowhere")
    with pytest.raises(subprocess.TimeoutExpired):
        one.run("sleep", "999", seconds=0.2)
    assert "sleep 999" not in one.run("ps", "-Af").stdout


def test_ports_are_listed_with_their_processes(one: Host) -> None:
    server = one.start("python", "-S", "-c", SERVER)
    wait_until(lambda: "ready" in server.text(), 10, "the server starts")
    (found,) = one.listening()
    assert (found.address, found.port, found.on_loopback) == ("0.0.0.0", 7000, False)
    assert "create_server" in found.process
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == -signal.SIGTERM


def test_a_killed_host_falls_silent_and_boots_with_its_disk(one: Host, two: Host) -> None:
    (one.home / "kept").touch()
    server = two.start("python", "-S", "-c", SERVER)
    wait_until(lambda: "ready" in server.text(), 10, "the server starts")
    with socket.create_connection((two.address, 7000)) as connection:
        assert connection.recv(1) == b"x"
        timer = two.cut(0.5)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            read_until_closed(connection)
        timer.join()
        connection.settimeout(10)
        assert connection.recv(1) == b"x"  # the connection has survived the cut
        two.kill()
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):  # and it was not closed by the loss of power
            read_until_closed(connection)
    assert not two.is_up
    two.boot()
    assert two.run("ls", "/tmp").stdout == ""
    assert "kept" in one.run("ls", "/home").stdout


def read_until_closed(connection: socket.socket) -> None:
    while connection.recv(100):
        pass


def test_nothing_is_left_when_the_harness_is_killed() -> None:
    if reason := missing_requirement():
        pytest.skip(reason)
    words = [sys.executable, "-c", KILLED]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == -signal.SIGKILL, said.stderr
    first, folder = said.stdout.splitlines()
    gateway, *pids = first.split()
    assert len(pids) >= 2
    wait_until(lambda: not any(map(psutil.pid_exists, map(int, pids))), 20, "its processes end")

    def has_address() -> bool:
        return gateway in {
            address.address for found in psutil.net_if_addrs().values() for address in found
        }

    wait_until(lambda: not has_address(), 20, "its network goes")
    Hosts.remove_leftovers()
    assert not Path(folder).exists()
