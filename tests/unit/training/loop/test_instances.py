"""Training of instance and panoptic segmentation: it learns, and is the same on two workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.inference.predictor import Predictor
from eagleray.training.loop.checkpoint import CheckpointStore
from eagleray.training.plan import make_plan
from eagleray.training.registration.packaging import finish_model
from tests.support.numerics import OPENVINO_ENLARGES, SAME_LOSS
from tests.support.segmented import nucleus_spec, write_nuclei
from tests.support.training import plan_for, train_as_two, train_in_process, train_until

pytestmark = pytest.mark.numerical


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.segmented")


RICH: dict[str, Any] = {
    "random_resized_crop": 0.5,
    "random_translation": 0.1,
    "horizontal_flip": True,
    "vertical_flip": True,
    "mosaic": 0.4,
    "ema_decay": 0.9,
    "optimizer": "sgd",
    "learning_rate": 0.0001,  # a loss that grows enlarges rounding
}


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nuclei(tmp_path_factory.mktemp("data") / "nuclei")


@pytest.mark.parametrize(("task", "metric"), [("instance", "map_50"), ("panoptic", "pq")])
def test_a_network_learns_nuclei_and_its_package_predicts_them(
    nuclei: Path, tmp_path: Path, task: str, metric: str
) -> None:
    spec = nucleus_spec(nuclei, task=task, epochs=30, horizontal_flip=True)
    plan, _ = plan_for(spec, tmp_path)
    result, _ = train_in_process(spec, tmp_path, plan=plan)
    assert result.epochs[-1][f"validation_{metric}"] > 0.6
    finished = finish_model(plan, plan.module, cache_folder=tmp_path / "cache", mlflow_run=None)
    metrics = finished.evaluation.metrics
    assert metrics[metric] > 0.6
    content = ImagePredictions.of(finished.evaluation).to_parquet()
    assert content is not None
    found = ImagePredictions.from_parquet(content, plan.task)
    assert plan.task.measure(found.outputs, found.targets) == metrics
    assert plan.task.worst_mistakes(found.outputs, found.targets, 3) is not None


@OPENVINO_ENLARGES
def test_openvino_has_the_outputs_of_pytorch(nuclei: Path, tmp_path: Path) -> None:
    plan, _ = plan_for(nucleus_spec(nuclei), tmp_path)
    finished = finish_model(plan, plan.module, cache_folder=tmp_path / "cache", mlflow_run=None)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    eager, converted = (
        Predictor(
            finished.package,
            device="cpu",
            engine=engine,
            precision="float32",
            cache_folder=tmp_path,
        ).forward(pixels)
        for engine in ("eager", "openvino")
    )
    assert eager.shape == (3, 5, 32, 32)
    np.testing.assert_allclose(converted, eager, atol=1e-4)


@pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") != "SSE41", reason="a CPU with AVX has the kernel"
)
def test_openvino_says_before_the_first_image_that_it_cannot_run(
    nuclei: Path, tmp_path: Path
) -> None:
    plan, _ = plan_for(nucleus_spec(nuclei), tmp_path)
    finished = finish_model(plan, plan.module, cache_folder=tmp_path / "cache", mlflow_run=None)
    with pytest.raises(InputError, match=r"engine openvino cannot run panoptic/.* --engine eager"):
        Predictor(finished.package, device="cpu", engine="openvino", cache_folder=tmp_path)


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(nuclei: Path, tmp_path: Path) -> None:
    spec = nucleus_spec(nuclei, **RICH, checkpoint_steps=2)
    whole, _ = train_in_process(spec, tmp_path / "whole")
    train_until(spec, tmp_path / "stopped", 3)
    _, worker_input = plan_for(spec, tmp_path / "stopped")
    assert CheckpointStore(worker_input.checkpoint_folder).names()
    again, _ = train_in_process(spec, tmp_path / "stopped")
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)


def test_two_workers_have_the_losses_of_one(nuclei: Path, tmp_path: Path) -> None:
    spec = nucleus_spec(nuclei, **RICH)
    one, _ = train_in_process(spec, tmp_path / "one")
    two = train_as_two(spec, tmp_path / "two")
    assert two.losses == pytest.approx(one.losses, rel=SAME_LOSS)
    assert [epoch["validation_loss"] for epoch in two.epochs] == pytest.approx(
        [epoch["validation_loss"] for epoch in one.epochs], rel=1e-3
    )


def test_a_network_without_centers_is_refused_before_the_run(nuclei: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(InputError, match=r"needs the tensors centers, labels, offsets; name anoth"):
        make_plan(nucleus_spec(nuclei, architecture="unet/resnet18"), settings)
    with pytest.raises(InputError, match=r"such as panoptic/resnet20"):
        make_plan(nucleus_spec(nuclei, architecture="resnet20"), settings)
