"""The latency of a model: decoding included, percentiles of single images, the best batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import InputError
from eagleray.inference.latency import Latency, measure_latency
from eagleray.inference.predictor import Predictor
from tests.support.attributes import package_with_attributes
from tests.support.models import small_package


class Machine:
    """Stands in for a predictor: its calls take the seconds that a test says, on its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, single: Iterator[float]) -> None:
        self.now = 0.0

        def predict(_: Predictor, images: Sequence[Any], __: Any = None) -> list[Any]:
            # From eight images on a call takes as long as they do one by one.
            self.now += next(single) if len(images) == 1 else 0.010 + 0.001 * len(images) ** 1.5
            return []

        monkeypatch.setattr(Predictor, "predict", predict)

    def measure(self, folder: Path) -> Latency:
        return measure_latency(
            small_package(),
            engine="eager",
            seconds=1.0,
            cache_folder=folder,
            clock=lambda: self.now,
        )


def test_a_frame_is_kept_by_the_95th_percentile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def single() -> Iterator[float]:
        number = 0
        while True:
            number += 1
            yield 0.050 if number % 20 == 0 else 0.020  # one of twenty is late

    latency = Machine(monkeypatch, single()).measure(tmp_path)
    assert [latency.p50, latency.p95] == pytest.approx([20, 20])
    assert latency.keeps(33.3)
    assert not latency.keeps(19)
    assert latency.best_batch == 8
    assert latency.images_per_second == pytest.approx(8 / (0.010 + 0.001 * 8**1.5))
    assert latency.engine == "eager"
    assert latency.network_bytes == len(small_package().files["model.safetensors"])


def test_more_late_images_miss_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def single() -> Iterator[float]:
        while True:
            yield from (0.020, 0.020, 0.020, 0.050)

    latency = Machine(monkeypatch, single()).measure(tmp_path)
    assert [latency.p50, latency.p95] == pytest.approx([20, 50])
    assert not latency.keeps(33.3)


def test_a_real_model_with_attributes_is_measured(tmp_path: Path) -> None:
    latency = measure_latency(package_with_attributes(), seconds=0.05, cache_folder=tmp_path)
    assert 0 < latency.p50 <= latency.p95
    assert latency.memory_bytes > 10**7
    assert Latency.model_validate_json(latency.model_dump_json()) == latency
    with pytest.raises(InputError, match="The engine openvino runs on CPUs only"):
        measure_latency(package_with_attributes(), device="meta", engine="openvino")
