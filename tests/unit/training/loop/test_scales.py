"""Multi-scale training: sides that change from step to step, and targets that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.tasks import Detection, Instance, Semantic
from eagleray.training.loop.augment import StepAugmentation
from eagleray.training.loop.batches import Batch, BatchPrefetcher
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.scales import resize_pixels, scaled_sizes
from eagleray.training.loop.trainer import Trainer
from tests.support.detection import annotation, detection_spec, write_shapes
from tests.support.numerics import SAME_LOSS
from tests.support.segmented import disk_spec, write_disks
from tests.support.training import (
    plan_for,
    small_spec,
    train_as_two,
    train_in_process,
    train_until,
    write_stripes,
)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.segmented,tests.support.detection")


def test_sides_are_multiples_of_32_around_that_of_the_contract() -> None:
    assert scaled_sizes((64, 64), 0.5) == ((32, 32), (64, 64), (96, 96))
    assert [height for height, _ in scaled_sizes((416, 416), 0.1)] == [384, 416, 448]
    assert scaled_sizes((96, 200), 0.34) == ((64, 128), (96, 192), (128, 256))


def test_a_change_that_allows_one_side_alone_is_refused() -> None:
    for side, change in ((416, 0.05), (28, 0.5)):
        with pytest.raises(InputError, match="needs two multiples of 32"):
            scaled_sizes((side, side), change)


def test_all_images_of_a_step_have_one_size_and_steps_have_many() -> None:
    spec = small_spec("data", multi_scale=0.5)
    sizes = [StepAugmentation(spec, 1, step, 8).step_size((128, 128)) for step in range(40)]
    assert set(sizes) == {(side, side) for side in (64, 96, 128, 160, 192)}
    assert sizes == [StepAugmentation(spec, 1, step, 2).step_size((128, 128)) for step in range(40)]
    assert StepAugmentation(small_spec("data"), 1, 0, 8).step_size((100, 90)) == (100, 90)


@pytest.mark.parametrize("after", [(32, 64), (96, 160)])
def test_boxes_and_masks_follow_their_pixels(after: tuple[int, int]) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[16:48, 32:96] = 200
    resized = resize_pixels(pixels, after)
    assert resized.shape == (*after, 3)
    is_bright = resized[:, :, 0] > 100
    rows, columns = np.nonzero(is_bright)
    boxes = Detection(labels=("square",))
    text = annotation(("square", 32, 16, 64, 32), width=128, height=64)
    targets = boxes.resize_targets(boxes.stack_targets([boxes.encode(text)])[0], (64, 128), after)
    assert targets[0, :2].tolist() == [after[1], after[0]]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert targets[1, :4].tolist() == pytest.approx(found, abs=1)
    classes = torch.from_numpy((pixels[:, :, 0] > 0).astype(np.uint8))
    of_pixels = Semantic(labels=("background", "square")).resize_targets(classes, (64, 128), after)
    assert (of_pixels.numpy() == is_bright).all()
    maps = torch.stack([classes, 7 * classes]).int()
    of_objects = Instance(labels=("square",)).resize_targets(maps, (64, 128), after)
    assert (of_objects[1].numpy() == 7 * is_bright).all()


def batches_of(folder: Path, tmp_path: Path) -> list[Batch]:
    """Return the batches of two epochs of a run on disks of 64 pixels."""
    spec = disk_spec(folder, image_size=64, multi_scale=0.5)
    _, worker_input = plan_for(spec, tmp_path)
    trainer = Trainer(worker_input, single_process(spec), lambda _: None)
    trainer.prepare()
    prefetcher = BatchPrefetcher(
        trainer.train, trainer.sampler, spec, (64, 64), trainer.context, task=worker_input.task
    )
    return [batch for epoch in (0, 1) for batch in prefetcher.epoch(epoch, 0)]


def brightness(batch: Batch) -> list[float]:
    """Return the mean brightness of the pixels of each class."""
    gray: Tensor = batch.inputs[0].float().mean(dim=3)
    return [gray[batch.targets == index].mean().item() for index in range(3)]


def test_batches_have_images_of_several_sizes_with_their_maps(tmp_path: Path) -> None:
    batches = batches_of(write_disks(tmp_path / "disks", 36), tmp_path)
    assert {batch.inputs[0].shape[1] for batch in batches} == {32, 64, 96}
    for batch in batches:
        assert batch.targets.shape == batch.inputs[0].shape[:3]
        background, bright, dark = brightness(batch)
        assert bright > background + 50 > dark + 90


def test_workers_and_a_resume_change_no_loss_of_a_detector(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes")
    spec = detection_spec(shapes, multi_scale=0.5, checkpoint_steps=1, batch_size=4)
    whole, _ = train_in_process(spec, tmp_path / "whole")
    two = train_as_two(spec, tmp_path / "two")
    assert two.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    train_until(spec, tmp_path / "stopped", 4)
    again, _ = train_in_process(spec, tmp_path / "stopped")
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)


def test_a_network_of_one_size_is_refused(tmp_path: Path) -> None:
    stripes = write_stripes(tmp_path / "stripes")
    spec = small_spec(stripes, architecture="vit_b_16", image_size=224, multi_scale=0.2)
    with pytest.raises(InputError, match=r"multi_scale 0\.2 cannot be used: vit_b_16 cannot take"):
        plan_for(spec, tmp_path)
