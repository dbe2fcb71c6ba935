"""A real PostgreSQL on a free port of this machine, started and stopped by the tests.

python -m tests.support.postgres --host 198.18.7.2    # prints the URLs of two empty databases
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.system import free_port

USER = "eagle"
PASSWORD = "Wing-Beat_7"


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    Attributes:
        port: On `host`.
        pid: Of its first process.
        host: Address that it listens on.
    """

    port: int
    pid: int
    host: str = "127.0.0.1"

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        """The URL of a database on it."""
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}"

    def new_database(self, *, encoding: str = "UTF8") -> str:
        """Create an empty database and return its name."""
        name = f"test_{secrets.token_hex(6)}"
        self.run(
            "postgres",
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'",
        )
        return name

    def run(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def find_postgres() -> Path | None:
    """The folder of `initdb` and `postgres`: the newest Debian has, or what PATH finds."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name)
    )
    found = shutil.which("initdb")
    candidates = [*reversed(folders), *([Path(found).resolve().parent] if found else [])]
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


def _unprivileged() -> dict[str, Any]:
    """As whom to start it: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def running_postgres(programs: Path, host: str = "127.0.0.1") -> Iterator[PostgresServer]:
    """Start a server with a cluster of its own, and remove both.

    Args:
        programs: The folder of `initdb` and `postgres`.
        host: Address that it listens on.
    """
    # Not under pytest's folders: those are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="eagleray-postgres-"))
    identity = _unprivileged()
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    try:
        (folder / "password").write_text(PASSWORD)
        if identity:
            for path in (folder, folder / "password"):
                shutil.chown(path, identity["user"], identity["group"])
        subprocess.run(
            [
                *(programs / "initdb", "--pgdata", folder / "data", "--encoding", "UTF8"),
                *("--username", USER, "--pwfile", folder / "password"),
                *("--auth", "scram-sha-256", "--no-sync"),
            ],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            **identity,
        )
        with (folder / "data/pg_hba.conf").open("a") as file:
            file.write("host all all all scram-sha-256\n")
        port = free_port()
        settings = {
            "listen_addresses": host,
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": 40,
        }
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    *(str(programs / "postgres"), "-D", str(folder / "data")),
                    *(part for pair in settings.items() for part in ("-c", "{}={}".format(*pair))),
                ],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **identity,
            )
        try:
            running = PostgresServer(port, server.pid, host)
            _wait_until_it_answers(server, running.url("postgres"), log)
            yield running
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is to be kept
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for all tests that need one; each makes a database of its own on it."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with running_postgres(programs) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.postgres")
    parser.add_argument("--host", default="127.0.0.1")
    programs = find_postgres()
    if programs is None:
        raise SystemExit("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with running_postgres(programs, parser.parse_args().host) as server:
        print(server.url(server.new_database()))
        print(server.url(server.new_database()), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
