"""The loss of a detector: which points predict which object, and what right predictions cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.tasks import Detection
from eagleray.tasks.base import LossOptions
from eagleray.tasks.detection.assignment import assign_points
from eagleray.tasks.detection.loss import detection_losses
from eagleray.tasks.detection.objects import CROWD, OBJECT

STRIDES = (8, 16, 32)
SIDE = 128


def points() -> Tensor:
    rows = []
    for stride in STRIDES:
        places = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(places, places, indexing="ij")
        rows.append(torch.stack([x, y, torch.full_like(x, stride)], dim=2).reshape(-1, 3))
    return torch.cat(rows)


POINTS = points()


def objects(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[[SIDE, SIDE, 0, 0, 0, 0], *rows]], dtype=torch.float32)


def outputs(boxes: Tensor, logits: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes[None], "logits": logits[None], "points": POINTS[None]}


SMALL, LARGE = (20.0, 20, 60, 60, 0, OBJECT), (10.0, 10, 120, 120, 1, OBJECT)


def test_objects_belong_to_the_map_of_their_size_and_to_points_near_their_centre() -> None:
    (assigned,) = assign_points(POINTS, objects(SMALL, LARGE)[:, 1:])
    small, large = POINTS[assigned == 0], POINTS[assigned == 1]
    assert set(small[:, 2].tolist()) == {8}  # 40 pixels: up to 8 strides of 8
    assert ((small[:, :2] - 40).abs() < 12).all()
    assert len(small) == 4
    assert set(large[:, 2].tolist()) == {16}  # 110 pixels: up to 8 strides of 16
    assert ((large[:, :2] - 65).abs() < 24).all()


def test_a_point_predicts_the_smallest_of_several_objects() -> None:
    outer, inner = (20.0, 20, 60, 60, 0, OBJECT), (30.0, 30, 50, 50, 1, OBJECT)
    (assigned,) = assign_points(POINTS, objects(outer, inner)[:, 1:])
    assert set(assigned[assigned >= 0].tolist()) == {1}


def test_every_object_has_a_point() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x, y, width, height = (torch.rand(4, generator=generator) * 90 + 1).tolist()
        x, y = min(x, SIDE - width), min(y, SIDE - height)
        row = (x, y, x + width, y + height, 0, OBJECT)
        assert (assign_points(POINTS, objects(row)[:, 1:]) == 0).any()


def test_right_predictions_cost_nearly_nothing_and_wrong_ones_more() -> None:
    targets = objects(SMALL)
    (assigned,) = assign_points(POINTS, targets[:, 1:])
    boxes = torch.tensor([[20.0, 20, 60, 60]]).repeat(len(POINTS), 1)
    logits = torch.full((len(POINTS), 2), -12.0)
    logits[assigned == 0, 0] = 12.0
    (right,) = detection_losses(outputs(boxes, logits), targets)
    assert right < 1e-3
    (moved,) = detection_losses(outputs(boxes + 30, logits), targets)
    swapped = logits.flip(1)
    (confused,) = detection_losses(outputs(boxes, swapped), targets)
    assert moved > 1
    assert confused > 1


def test_an_image_without_objects_costs_what_it_finds() -> None:
    boxes = torch.zeros(len(POINTS), 4)
    silent = torch.full((len(POINTS), 2), -12.0)
    (nothing,) = detection_losses(outputs(boxes, silent), objects())
    assert nothing < 1e-3
    found = silent.clone()
    found[5, 0] = 6.0
    (something,) = detection_losses(outputs(boxes, found), objects())
    assert something > 1


def test_points_in_a_crowd_are_neither_right_nor_wrong() -> None:
    boxes = torch.zeros(len(POINTS), 4)
    found = torch.full((len(POINTS), 2), 6.0)
    whole = (0.0, 0, SIDE, SIDE, 0, CROWD)
    (ignored,) = detection_losses(outputs(boxes, found), objects(whole))
    assert ignored == 0


def test_the_losses_of_images_do_not_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(2, len(POINTS), 4, generator=generator) * 40
    boxes[..., 2:] += boxes[..., :2]
    logits = torch.randn(2, len(POINTS), 2, generator=generator)
    padded = torch.cat([objects(SMALL, LARGE), objects((0.0, 0, 0, 0, 0, 0), SMALL)])
    both = detection_losses({"boxes": boxes, "logits": logits, "points": POINTS[None]}, padded)
    for place, targets in enumerate((objects(SMALL, LARGE), objects(SMALL))):
        (alone,) = detection_losses(outputs(boxes[place], logits[place]), targets)
        torch.testing.assert_close(both[place], alone)


def test_a_named_loss_is_taken_whatever_else_the_network_returns() -> None:
    task = Detection(labels=("a", "b"))
    boxes = torch.tensor([[20.0, 20, 60, 60]]).repeat(len(POINTS), 1)
    found = outputs(boxes, torch.randn(len(POINTS), 2, generator=torch.Generator().manual_seed(0)))
    plain = detection_losses(found, objects(SMALL))
    of_fcos = {**found, "centreness": found["logits"][..., 0], "label_logits": found["logits"]}
    assert detection_losses(of_fcos, objects(SMALL)) != plain
    named = task.image_losses(LossOptions(name="quality_focal"), ())
    assert named(of_fcos, objects(SMALL)) == plain
    del found["points"]
    with pytest.raises(InputError, match="quality_focal is of networks that return `points`"):
        named(found, objects(SMALL))
