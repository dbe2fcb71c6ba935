"""The OpenVINO engine: equal to eager, shared by threads, cached, without leaks and telemetry."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from eagleray.core.errors import UnsupportedNetworkError
from eagleray.core.types import TOLERANCE
from eagleray.inference.engine import ENGINES
from eagleray.inference.openvino import OpenVinoEngine
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.package import ModelPackage
from tests.support.letters import CONTRACT, package_of
from tests.support.predictors import eager, first_run, package

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def small() -> ModelPackage:
    return package(architecture="lenet5")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def test_a_converted_network_predicts_as_the_one_that_was_built(cache: Path) -> None:
    package = package_of("resnet18")
    images = torch.randint(0, 256, (5, *CONTRACT.shape), dtype=torch.uint8)
    with torch.inference_mode():
        plan = ExecutionPlan("cpu", "float32", batch_size=4, num_threads=1)
        expected = ENGINES.get("eager").prepare(package, plan, cache)(images).softmax(1)
        run = OpenVinoEngine().prepare(package, plan, cache)
        for size in (5, 1, 3):  # batches of any size
            outputs = run(images[:size]).softmax(1)
            assert outputs.dtype == torch.float32
            assert (outputs - expected[:size]).abs().max() <= 1e-4


@pytest.mark.parametrize("num_callers", [1, 3])
def test_threads_that_share_a_predictor_get_the_predictions_of_one(
    small: ModelPackage, cache: Path, num_callers: int
) -> None:
    predictor = eager(small, engine="openvino", cache_folder=cache, num_callers=num_callers)
    random, shape = np.random.default_rng(0), small.contract.shape
    batches = [random.integers(0, 256, (11, *shape), dtype=np.uint8) for _ in range(24)]
    expected = [predictor.forward(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for outputs, alone in zip(pool.map(predictor.forward, batches), expected, strict=True):
            np.testing.assert_allclose(outputs, alone, rtol=0, atol=TOLERANCE["float32"])


def test_a_network_is_converted_once_and_found_in_the_cache(
    small: ModelPackage, tmp_path: Path
) -> None:
    engine = OpenVinoEngine()
    assert engine.preparation_seconds(small, tmp_path) > 0
    first = eager(small, engine="openvino", cache_folder=tmp_path)
    assert engine.preparation_seconds(small, tmp_path) == 0
    (graph,) = (tmp_path / "openvino").glob("*/network.xml")
    stamp = graph.stat().st_mtime_ns
    again = eager(small, engine="openvino", cache_folder=tmp_path, batch_size=2)
    assert graph.stat().st_mtime_ns == stamp
    pixels = np.random.default_rng(0).integers(0, 256, (9, *small.contract.shape), dtype=np.uint8)
    np.testing.assert_allclose(first.forward(pixels), again.forward(pixels), atol=1e-5)
    assert again.require_healthy().num_images == 2
    eager(package(architecture="resnet20"), engine="openvino", cache_folder=tmp_path)
    assert len(list((tmp_path / "openvino").glob("*/network.xml"))) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    small: ModelPackage, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    predictor = eager(small, engine="openvino", cache_folder=tmp_path / "file")
    assert predictor.require_healthy().num_images == 2


def test_passes_take_no_memory(small: ModelPackage, cache: Path) -> None:
    predictor = eager(small, engine="openvino", cache_folder=cache)
    images = torch.zeros((4, *small.contract.shape), dtype=torch.uint8)
    run, process = first_run(predictor), psutil.Process()
    for _ in range(500):
        run(images)
    before = process.memory_info().rss
    for _ in range(4000):
        run(images)
    assert process.memory_info().rss - before < 300_000  # a pass that kept anything would be above


class LooksAtItsImages(nn.Module):
    """Its path depends on values, so that it cannot be converted."""

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean((2, 3))
        return features if features.mean() > 0 else -features


def test_a_network_that_cannot_be_converted_is_refused_in_a_sentence(
    small: ModelPackage, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ModelPackage, "build_module", lambda _: LooksAtItsImages().eval())
    with pytest.raises(
        UnsupportedNetworkError, match=r"OpenVINO cannot run lenet5 \(.+\); use --engine"
    ):
        eager(small, engine="openvino", cache_folder=tmp_path)


def test_importing_openvino_sends_nothing() -> None:
    program = (
        "from eagleray.inference.openvino import import_openvino; import sys;"
        "ov = import_openvino(); from openvino.tools import ovc; import nncf.telemetry as t;"
        "from openvino.tools.ovc import telemetry_stub;"
        "print(ov.Core is not None, sys.modules['openvino_telemetry'],"
        " type(ovc.telemetry).__module__, type(t.telemetry).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        "True", "None", "openvino.tools.ovc.telemetry_stub", "MagicMock",
    ]  # fmt: skip
