"""Versions serve at once, are measured in a process beside that, and move to the fastest engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.types import TOLERANCE
from eagleray.inference.choice import MIN_GAIN, MeasuredSpeeds
from tests.support.serving import IMAGE, PREDICT, RunningApp, registry_with, with_service


@pytest.mark.numerical
def test_a_version_is_measured_beside_serving_and_moves_to_the_fastest_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_with(tmp_path, "digits")
    monkeypatch.setenv("EAGLERAY_HOME", str(registry.settings.home))  # for the other process

    async def test(running: RunningApp) -> None:
        pool = running.service.model_pool

        def measured() -> bool:
            return pool.reports()[0].measured

        async def predict() -> tuple[str, float]:
            response = await running.client.post(PREDICT, content=IMAGE)
            assert response.status_code == 200, response.text
            said = response.json()
            return said["engine"], said["results"][0]["score"]

        await running.until(lambda: pool.loaded("digits", 1))
        assert not measured()
        engine, score = await predict()
        assert engine.startswith("eager ")
        await running.until(measured, seconds=240)
        (file,) = registry.settings.cache_folder.glob("speeds/*.json")
        speeds = MeasuredSpeeds.model_validate_json(file.read_bytes()).images_per_second
        assert "openvino float32" in speeds
        speeds = {
            name: speed / (MIN_GAIN if "bfloat16" in name else 1) for name, speed in speeds.items()
        }
        fastest, again = await predict()
        assert fastest == max(speeds, key=lambda name: speeds[name])
        tolerance = TOLERANCE["bfloat16" if "bfloat16" in engine + fastest else "float32"]
        assert again == pytest.approx(score, abs=tolerance)

    with_service(registry, test, engine="auto")
