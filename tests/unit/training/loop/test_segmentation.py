"""Training of semantic segmentation: it learns, is resumed, and is the same on two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.training.loop.batches import BatchPrefetcher
from eagleray.training.loop.checkpoint import CheckpointStore
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.trainer import Trainer
from eagleray.training.plan import make_plan
from eagleray.training.registration.packaging import finish_model
from tests.support.numerics import SAME_LOSS
from tests.support.segmented import disk_spec, write_disks
from tests.support.training import plan_for, train_as_two, train_in_process, train_until

pytestmark = pytest.mark.numerical


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.segmented")


OWN = "tests.support.own_code"
RICH: dict[str, Any] = {
    "random_resized_crop": 0.5,
    "random_translation": 0.1,
    "horizontal_flip": True,
    "vertical_flip": True,
    "color_jitter": 0.2,
    "mosaic": 0.4,
    "ema_decay": 0.9,
}
PAIRED = {**RICH, "optimizer": "sgd", "learning_rate": 0.05}  # Adam enlarges rounding


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disks(tmp_path_factory.mktemp("data") / "disks", 36)


def test_a_network_learns_disks_and_its_package_predicts_them(disks: Path, tmp_path: Path) -> None:
    spec = disk_spec(disks, epochs=12, horizontal_flip=True)
    plan, _ = plan_for(spec, tmp_path)
    assert plan.task.labels == ("background", "bright", "dark")
    result, _ = train_in_process(spec, tmp_path, plan=plan)
    first, last = result.epochs[0], result.epochs[-1]
    assert last["validation_mean_iou"] > 0.7 > first["validation_mean_iou"]
    assert last["train_mean_dice"] > 0.7
    finished = finish_model(plan, plan.module, cache_folder=tmp_path / "cache", mlflow_run=None)
    metrics = finished.evaluation.metrics
    assert metrics["mean_iou"] == pytest.approx(last["validation_mean_iou"], abs=0.15)
    assert len(finished.package.golden.images[0].outputs) == 3 * 64
    kept = ImagePredictions.of(finished.evaluation)
    content = kept.to_parquet()
    assert content is not None
    found = ImagePredictions.from_parquet(content, plan.task)
    assert plan.task.measure(found.outputs, found.targets) == metrics


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(
    disks: Path, tmp_path: Path, step: int
) -> None:
    spec = disk_spec(disks, **RICH, checkpoint_steps=2)
    whole, _ = train_in_process(spec, tmp_path / "whole")
    train_until(spec, tmp_path / "stopped", step)
    _, worker_input = plan_for(spec, tmp_path / "stopped")
    assert CheckpointStore(worker_input.checkpoint_folder).names()
    again, _ = train_in_process(spec, tmp_path / "stopped")
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    for name in ("validation_loss", "validation_mean_iou", "train_mean_iou"):
        assert [epoch[name] for epoch in again.epochs] == pytest.approx(
            [epoch[name] for epoch in whole.epochs], rel=1e-3
        )


def test_two_workers_have_the_losses_of_one(disks: Path, tmp_path: Path) -> None:
    spec = disk_spec(disks, **PAIRED)
    one, _ = train_in_process(spec, tmp_path / "one")
    two = train_as_two(spec, tmp_path / "two")
    assert two.losses == pytest.approx(one.losses, rel=SAME_LOSS)
    for name in ("validation_loss", "validation_mean_iou", "train_mean_iou"):
        assert [epoch[name] for epoch in two.epochs] == pytest.approx(
            [epoch[name] for epoch in one.epochs], rel=1e-3
        )


def test_a_step_has_images_with_their_maps(disks: Path, tmp_path: Path) -> None:
    spec = disk_spec(disks, **RICH)
    _, worker_input = plan_for(spec, tmp_path)
    trainer = Trainer(worker_input, single_process(spec), lambda _: None)
    trainer.prepare()
    prefetcher = BatchPrefetcher(
        trainer.train, trainer.sampler, spec, (32, 32), trainer.context, task=worker_input.task
    )
    batch = next(prefetcher.epoch(0, 0))
    assert batch.targets.dtype == torch.uint8
    assert batch.targets.shape == (6, 32, 32)
    gray = batch.inputs[0].float().mean(dim=3)
    means = [gray[batch.targets == index].mean().item() for index in range(3)]
    assert means[1] > means[0] + 50 > means[2] + 90


def test_a_classifier_is_refused_before_the_run(disks: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(InputError, match=r"a semantic model needs logits of every pixel"):
        make_plan(disk_spec(disks, architecture="resnet20"), settings)
    with pytest.raises(InputError, match=r"a semantic model needs the whole image"):
        make_plan(disk_spec(disks, contract="torchvision-reference"), settings)


def test_a_loss_of_ones_own_gets_logits_and_maps_of_pixels(
    disks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", f"{OWN},tests.support.segmented")
    make_plan(disk_spec(disks, loss=f"{OWN}:pixel_error"), Settings(home=tmp_path))
    with pytest.raises(
        InputError, match=r"fails on logits \(2, 3, 32, 32\) and targets torch.uint8"
    ):
        make_plan(disk_spec(disks, loss=f"{OWN}:squared_error"), Settings(home=tmp_path))
