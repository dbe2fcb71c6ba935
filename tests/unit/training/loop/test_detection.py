"""Training of detectors: objects move with their pixels, and runs resume to the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.tasks import Detection
from eagleray.training.loop.augment import StepAugmentation
from eagleray.training.loop.mosaic import draw_tiles, put_together
from eagleray.training.plan import TrainPlan, make_plan
from tests.support.detection import DETECTOR, annotation, detection_spec, write_shapes
from tests.support.numerics import SAME_LOSS
from tests.support.training import (
    plan_for,
    small_spec,
    train_as_two,
    train_in_process,
    train_until,
)

pytestmark = pytest.mark.numerical

MOVES: dict[str, Any] = {
    "horizontal_flip": True,
    "vertical_flip": True,
    "random_resized_crop": 0.5,
    "random_translation": 0.1,
}
TASK = Detection(labels=("square",))
SIZE = (80, 120)
TWO_STAGES = DETECTOR.replace("detector/", "fasterrcnn/")


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.detection")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


def squared(left: int, top: int, side: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return a picture with one bright square, and its targets."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[top : top + side, left : left + side] = 255
    text = annotation(("square", left, top, side, side), width=SIZE[1], height=SIZE[0])
    return pixels, TASK.stack_targets([TASK.encode(text)])[0]


def assert_around(pixels: np.ndarray, box: list[float]) -> None:
    """Check that a box encloses all bright pixels, up to a pixel of a resize."""
    rows, columns = np.nonzero(pixels[:, :, 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert box == pytest.approx(found, abs=1.5)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_move_with_their_pixels(seed: int) -> None:
    pixels, targets = squared(30 + seed, 20 + seed, 24)
    augmentation = StepAugmentation(small_spec("data", **MOVES, seed=seed), 0, 0, 1)
    moved, placement, window = augmentation.apply(pixels, 0, SIZE)
    rows = TASK.move_targets(targets, placement, window)
    if (moved > 127).any():
        assert_around(moved, rows[1, :4].tolist())
    else:
        assert len(rows) == 1


@pytest.mark.parametrize("seed", range(6))
def test_boxes_of_a_mosaic_are_where_its_images_are(seed: int) -> None:
    images, truths = zip(*(squared(10 + 15 * place, 10, 30) for place in range(4)), strict=True)
    tiles = draw_tiles(np.random.default_rng(seed).random(6), SIZE)
    mosaic, placements = put_together(images, tiles, SIZE)
    covered = np.zeros(SIZE, int)
    for truth, tile, placement in zip(truths, tiles, placements, strict=True):
        x1, y1, x2, y2 = tile.window
        covered[y1:y2, x1:x2] += 1
        quarter = np.zeros_like(mosaic)
        quarter[y1:y2, x1:x2] = mosaic[y1:y2, x1:x2]
        rows = TASK.move_targets(truth, placement, tile.window)
        if (quarter > 127).any():
            assert_around(quarter, rows[1, :4].tolist())
        else:  # less than a pixel of it may be left
            assert ((rows[1:, 2:4] - rows[1:, :2]).amin(dim=1) < 1).all()
    assert (covered == 1).all()
    joined = TASK.join_targets(
        [
            TASK.move_targets(truth, placement, tile.window)
            for truth, tile, placement in zip(truths, tiles, placements, strict=True)
        ]
    )
    assert len(joined) >= 2


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(shapes: Path, tmp_path: Path) -> None:
    spec = detection_spec(
        shapes, **MOVES, mosaic=0.5, color_jitter=0.2, checkpoint_steps=1, batch_size=4
    )
    whole, _ = train_in_process(spec, tmp_path / "whole")
    train_until(spec, tmp_path / "stopped", 4)
    again, _ = train_in_process(spec, tmp_path / "stopped")
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    assert len(whole.losses) == 9
    for one, other in zip(again.epochs, whole.epochs, strict=True):
        assert one["validation_map"] == pytest.approx(other["validation_map"], abs=1e-6)
        assert "train_map" not in one


@pytest.mark.long
def test_two_workers_train_a_detector_with_two_stages_as_one_does(
    shapes: Path, tmp_path: Path
) -> None:
    spec = detection_spec(
        shapes, architecture=TWO_STAGES, horizontal_flip=True, checkpoint_steps=1, batch_size=4
    )
    whole, _ = train_in_process(spec, tmp_path / "whole")
    two = train_as_two(spec, tmp_path / "two")
    assert two.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    assert len(whole.losses) == 9
    train_until(spec, tmp_path / "stopped", 4)
    again, _ = train_in_process(spec, tmp_path / "stopped")
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    last = [one.epochs[-1]["validation_loss"] for one in (whole, two, again)]
    assert last[1:] == pytest.approx([last[0]] * 2, rel=SAME_LOSS)


def plan_of(shapes: Path, home: Path, **changes: Any) -> TrainPlan:
    return plan_for(detection_spec(shapes, **changes), home)[0]


def test_a_plan_has_a_letterbox_and_the_default_network(shapes: Path, tmp_path: Path) -> None:
    plan = plan_of(shapes, tmp_path)
    assert isinstance(plan.task, Detection)
    assert plan.task.labels == ("disc", "square")
    assert plan.contract.resize.mode == "letterbox"
    default = make_plan(
        detection_spec(shapes, architecture=None, image_size=64), Settings(home=tmp_path)
    )
    assert default.architecture.name == "detector/resnet18"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet20"}, "such as detector/resnet20"),
        ({"contract": "fast"}, "needs the whole image, and fast crops it; name letterbox or"),
        ({"architecture": "detector/vit_b_16"}, "vit_b_16 cannot be a backbone"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(shapes, tmp_path, **changes)


@pytest.mark.parametrize("option", ["mixup", "randaugment"])
def test_augmentation_that_leaves_no_place_where_it_was_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} is not for detection; leave it out"):
        detection_spec("data", **{option: 1})
    with pytest.raises(InputError, match="mosaic is not for multiclass; leave it out"):
        small_spec("data", mosaic=0.5)
