"""Compiled networks: cached, shared by threads, without leaks, and equal to eager ones."""

from __future__ import annotations

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from eagleray.core.types import TOLERANCE
from eagleray.inference.compiled import compiled_path
from eagleray.inference.compiled_library import load_compiled
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.package import ModelPackage
from tests.support.predictors import eager, first_run, package

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def pets() -> ModelPackage:
    return package()


@pytest.fixture(scope="module")
def small() -> ModelPackage:
    """A network that compiles quickly."""
    return package(architecture="lenet5")


@pytest.fixture(scope="module")
def compiled_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the processes of a parallel run share: one of them compiles, the others wait."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled-networks"


@pytest.mark.parametrize("compile_mode", ["never", "always"])
def test_threads_that_share_a_predictor_get_the_predictions_of_one(
    small: ModelPackage, compiled_cache: Path, compile_mode: str
) -> None:
    options: dict[str, object] = {"batch_size": 4, "cache_folder": compiled_cache}
    predictor = eager(small, compile_mode=compile_mode, **options)
    random, shape = np.random.default_rng(0), small.contract.shape
    batches = [random.integers(0, 256, (11, *shape), dtype=np.uint8) for _ in range(24)]
    expected = [predictor.forward(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for outputs, alone in zip(pool.map(predictor.forward, batches), expected, strict=True):
            np.testing.assert_allclose(outputs, alone, rtol=0, atol=TOLERANCE["float32"])


def test_a_file_without_a_library_is_no_compiled_network(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pt2"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("model/readme.txt", "nothing")
    with pytest.raises(RuntimeError, match="holds 0 libraries where one belongs"):
        load_compiled(empty)


def test_a_compiled_network_is_cached_and_agrees_with_eager(
    small: ModelPackage, compiled_cache: Path
) -> None:
    options: dict[str, object] = {"batch_size": 4, "cache_folder": compiled_cache}
    compiled = eager(small, compile_mode="always", **options)
    assert compiled.compiled
    pixels = np.random.default_rng(0).integers(0, 256, (9, *small.contract.shape), dtype=np.uint8)
    difference = np.abs(compiled.forward(pixels) - eager(small, batch_size=4).forward(pixels))
    assert difference.max() <= 1e-4
    files = list((compiled_cache / "compiled").glob("*.pt2"))
    stamp = files[0].stat().st_mtime_ns
    again = eager(small, compile_mode="auto", **options)  # the cache is used, though 0 are expected
    assert again.compiled
    assert [file.stat().st_mtime_ns for file in files] == [stamp]
    assert again.require_healthy().num_images == 2


def test_passes_of_a_compiled_network_take_no_memory(
    small: ModelPackage, compiled_cache: Path
) -> None:
    options: dict[str, object] = {"batch_size": 4, "cache_folder": compiled_cache}
    compiled = eager(small, compile_mode="always", **options)
    images = torch.zeros((4, *small.contract.shape), dtype=torch.uint8)
    run, process = first_run(compiled), psutil.Process()
    for _ in range(500):
        run(images)
    before = process.memory_info().rss
    for _ in range(4000):
        run(images)
    assert process.memory_info().rss - before < 300_000  # a pass that kept anything would be above


def test_the_cache_knows_weights_precision_and_shape_apart(pets: ModelPackage) -> None:
    other = package(architecture="resnet56")
    folder = Path("/cache")
    paths = {
        compiled_path(model, ExecutionPlan("cpu", precision, size), folder)
        for model in (pets, other)
        for precision in ("float32", "bfloat16")
        for size in (8, 16)
    }
    assert len(paths) == 8


def test_compiling_is_skipped_when_it_cannot_pay(pets: ModelPackage, tmp_path: Path) -> None:
    predictor = eager(pets, compile_mode="auto", expected_images=50, cache_folder=tmp_path)
    assert not predictor.compiled
    assert not list(tmp_path.iterdir())
