"""Many models, versions and applications in one service: each request gets its own version."""

from __future__ import annotations

import pytest

from tests.bench.many_models import parse_options, prove


@pytest.mark.long
def test_each_request_is_answered_by_its_version() -> None:
    words = "--models 3 --versions 3 --applications 3 --requests 200 --memory-mb 0.3 --rare 1"
    findings = prove(parse_options([*words.split(), "--asked-share", "0.1", "--seed", "1"]))
    assert findings.wrong == []
    assert findings.figures["requests over 8 connections"] == "200"
