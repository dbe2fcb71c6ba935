"""The loss of boxes with masks: targets from object maps, and values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from eagleray.tasks.detection.assignment import objects_of
from eagleray.tasks.detection.two_stage_loss import two_stage_losses
from eagleray.tasks.segmentation.class_maps import IGNORED
from eagleray.tasks.segmentation.region_loss import (
    mask_losses,
    mask_targets,
    region_losses,
    rows_of_maps,
)

HEIGHT, WIDTH = 16, 24


def maps() -> torch.Tensor:
    """Return the maps of two images: objects 1 and 3, of the labels 0 and 1; and none."""
    drawn = torch.zeros(2, 2, HEIGHT, WIDTH, dtype=torch.int32)
    drawn[0, 0, 2:10, 4:12], drawn[0, 1, 2:10, 4:12] = 1, 1
    drawn[0, 0, 2:6, 8:12], drawn[0, 1, 2:6, 8:12] = 0, 0  # the corner is no part of it
    drawn[0, 0, 12:15, 20:23], drawn[0, 1, 12:15, 20:23] = 2, 3
    drawn[1, 0, :, 20:] = IGNORED
    return drawn


def test_boxes_are_the_extents_of_objects() -> None:
    rows = rows_of_maps(maps())
    assert rows.shape == (2, 4, 6)
    assert rows[0].tolist() == [
        [WIDTH, HEIGHT, 0, 0, 0, 0],
        [4, 2, 12, 10, 0, 1],
        [0, 0, 0, 0, 0, 0],  # no object has the number 2
        [20, 12, 23, 15, 1, 1],
    ]
    assert rows[1].tolist() == [[WIDTH, HEIGHT, 0, 0, 0, 0], *([[0.0] * 6] * 3)]


def test_the_mask_of_a_box_is_the_share_of_each_place_that_is_of_its_object() -> None:
    boxes = torch.tensor([[4.0, 2, 12, 10], [0, 2, 8, 10]]).expand(2, -1, -1)
    true = mask_targets(maps()[:, 1], boxes, torch.tensor([[1, 1], [1, 1]]), 4)
    quarter = torch.ones(4, 4)
    quarter[:2, 2:] = 0
    assert torch.equal(true[0, 0], quarter)
    half = torch.zeros(4, 4)
    half[:, 2:] = 1  # its left half is beside the object
    assert torch.equal(true[0, 1], half)
    assert true[1].sum() == 0  # the second image has no object


def test_the_loss_of_masks_is_the_mean_over_boxes_with_an_object() -> None:
    drawn = maps()
    boxes = torch.tensor([[4.0, 2, 12, 10], [0, 0, 3, 3], [20, 12, 23, 15]]).expand(2, -1, -1)
    masks = torch.zeros(2, 3, 4, 4)
    masks[0, 1] = 50  # of a box without an object, which is not learned
    masks[0, 2] = 2.0
    masks.requires_grad_()
    objects = objects_of(rows_of_maps(drawn))
    losses = mask_losses(masks, boxes, objects, drawn[:, 1])
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2
    assert losses.tolist() == pytest.approx([expected, 0.0], abs=1e-6)
    torch.autograd.backward(losses.sum())
    assert masks.grad is not None
    assert masks.grad[0, 1].abs().sum() == 0
    assert masks.grad[0, 2].abs().sum() > 0


def test_a_box_that_overlaps_an_object_little_does_not_learn_its_mask() -> None:
    drawn = maps()[:1]
    boxes = torch.tensor([[[18.0, 10, 24, 16]]])  # an IoU of 0.25, the best that the object has
    masks = torch.zeros(1, 1, 4, 4)
    losses = mask_losses(masks, boxes, objects_of(rows_of_maps(drawn)), drawn[:, 1])
    assert losses.tolist() == [0]


def outputs_of_anchors(anchors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return outputs of two images that propose and find the anchors, and know nothing of them."""
    count = len(anchors)
    boxes = anchors.expand(2, -1, -1)
    return {
        "anchors": boxes,
        "objectness": torch.zeros(2, count),
        "anchor_deltas": torch.zeros(2, count, 4),
        "proposals": boxes,
        "deltas": torch.zeros(2, count, 4),
        "logits": torch.zeros(2, count, 2),
        "background": torch.zeros(2, count),
        "detections": torch.cat([boxes, torch.ones(2, count, 2)], dim=2),
        "masks": torch.zeros(2, count, 4, 4),
    }


def test_the_loss_is_that_of_the_detector_and_that_of_the_masks() -> None:
    drawn = maps()[:1].expand(2, -1, -1, -1)
    outputs = outputs_of_anchors(torch.tensor([[4.0, 2, 12, 10], [14, 2, 18, 6]]))
    of_boxes = two_stage_losses(outputs, rows_of_maps(drawn))
    assert of_boxes.tolist() == pytest.approx([2 * math.log(2)] * 2)
    losses = region_losses(outputs, drawn)
    assert losses.tolist() == pytest.approx([3 * math.log(2)] * 2)


def test_boxes_around_ignored_pixels_are_neither_right_nor_wrong() -> None:
    outputs = outputs_of_anchors(torch.tensor([[21.0, 4, 24, 8]]))
    losses = region_losses(outputs, maps())
    assert losses[0].item() == pytest.approx(2 * math.log(2))  # it must find nothing there
    assert losses[1].item() == 0
