"""Many models, versions and applications in one service: each request gets its own version."""

from __future__ import annotations

import pytest

from tests.support.many_models import Options, check_versions


@pytest.mark.long
def test_each_request_gets_the_prediction_of_its_version() -> None:
    findings = check_versions(
        Options(
            models=3,
            versions=3,
            applications=3,
            requests=200,
            memory_mb=0.3,
            unloaded=1,
            version_share=0.1,
            seed=1,
        )
    )
    assert findings.wrong == []
    assert findings.figures["requests over 8 connections"] == "200"
