"""A real S3 protocol server (moto's) in a process of its own, by default on a free loopback port.

    python -m tests.support.s3_server
    python -m tests.support.s3_server --host 198.18.7.2 --port 5000

moto looks whether a key is there and puts it in two steps, with other requests between them. S3
itself does both at once, and so does this server: of two conditional puts one loses.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Start a server; gives its endpoint. Any credentials will do."""
    command = [sys.executable, "-m", "tests.support.s3_server"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()  # it says where it listens
        if not endpoint:
            raise RuntimeError("moto's server does not start")
        yield endpoint
    finally:
        server.kill()
        server.wait()


def conditional_puts_in_turn(application: _Wsgi) -> _Wsgi:
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock if "HTTP_IF_NONE_MATCH" in environ else contextlib.nullcontext():
            return application(environ, start_response)

    return answer


def main() -> None:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    parser = argparse.ArgumentParser(prog="python -m tests.support.s3_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        options.host,
        options.port,
        conditional_puts_in_turn(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=MotoRequestHandler,
    )
    print(f"http://{options.host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
