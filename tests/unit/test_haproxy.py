"""What the service changes in the configuration that Ray Serve writes for HAProxy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "serve/haproxy"
WRITTEN = """\
global
    close-spread-time 60s
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
  stats enable
"""
WANTED = """\
global
    close-spread-time infinite
frontend prometheus
    bind 127.0.0.1:9101
    mode http
frontend http_frontend
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request deny deny_status 404 if { path -i /-/routes }
    bind 127.0.0.1:8000
listen stats
  bind 127.0.0.1:8404
  stats enable
"""


def test_statistics_stay_on_this_machine_and_callers_set_no_limits(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(WRITTEN)
    environment = {**os.environ, "EAGLERAY_HAPROXY": "/bin/echo"}
    command = [str(SCRIPT), "-db", "-f", str(config), "-sf", "7"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == command[1:]
    assert config.read_text() == WANTED
