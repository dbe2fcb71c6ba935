"""Region proposals and the features of regions, compared with torchvision's own."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, box_iou, nms

from eagleray.models.networks.anchors import decode
from eagleray.models.networks.proposals import (
    RegionProposalNetwork,
    _best_of_level,
)
from eagleray.models.networks.regions import pool_regions
from eagleray.models.networks.suppression import pairwise_overlaps, unsuppressed

pytestmark = pytest.mark.numerical

STRIDES = (4, 8, 16, 32)
SIZE = (96, 128)


def random_boxes(count: int, seed: int, *, images: int = 1, most: float = 60) -> Tensor:
    """Return boxes (N, K, 4) within the input."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(images, count, 4, generator=generator)
    low = numbers[..., :2] * torch.tensor([SIZE[1] - 4.0, SIZE[0] - 4.0])
    high = low + 3 + numbers[..., 2:] * most
    return torch.cat([low, torch.minimum(high, torch.tensor([SIZE[1], SIZE[0]]) * 1.0)], dim=2)


def pyramid(images: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, 8, SIZE[0] // stride, SIZE[1] // stride, generator=generator)
        for stride in STRIDES
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_suppression_is_that_of_torchvision(seed: int) -> None:
    boxes = random_boxes(200, seed, most=12)
    boxes[..., 2:] = boxes[..., :2] + 30  # many of them overlap
    (stays,) = unsuppressed(pairwise_overlaps(boxes), 0.7)
    expected = nms(boxes[0], torch.linspace(1, 0, 200), 0.7)
    assert 60 < len(expected) < 180
    assert stays.nonzero().flatten().tolist() == sorted(expected.tolist())


def test_a_box_that_a_suppressed_one_overlaps_stays() -> None:
    steps = torch.tensor([[0.0, 0, 10, 10], [1.5, 0, 11.5, 10], [3, 0, 13, 10], [4.5, 0, 14.5, 10]])
    assert box_iou(steps[:1], steps[1:]).tolist()[0] == pytest.approx(
        [0.739, 0.538, 0.379], abs=0.01
    )
    assert unsuppressed(pairwise_overlaps(steps[None]), 0.7)[0].tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_suppressed_boxes_rank_behind_all_others() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10.5], [50, 50, 200, 60]]])
    ranks, found = _best_of_level(torch.tensor([[2.0, 1.0, -3.0]]), boxes, SIZE)
    assert (ranks.argsort(dim=1, descending=True)[0]).tolist() == [0, 2, 1]
    assert found[0, 2].tolist() == [50, 50, 128, 60]  # cut off at the edge of the input


def proposals_of(levels: list[Tensor], count: int) -> tuple[RegionProposalNetwork, Tensor]:
    torch.manual_seed(0)
    network = RegionProposalNetwork(8, STRIDES, count)
    return network, network(levels, SIZE).boxes


def test_the_number_of_proposals_is_fixed_and_the_best_come_first() -> None:
    levels = pyramid(2)
    network, boxes = proposals_of(levels, 50)
    found = network(levels, SIZE)
    num_anchors = 3 * (24 * 32 + 12 * 16 + 6 * 8 + 3 * 4)
    assert found.anchors.shape == (num_anchors, 4)
    assert found.objectness.shape == (2, num_anchors)
    assert boxes.shape == (2, 50, 4)
    assert not boxes.requires_grad
    assert found.objectness.requires_grad
    for image in range(2):
        best = found.objectness[image].argmax()
        own = decode(found.deltas[image, best][None, None], found.anchors[best][None])[0, 0]
        clipped = own.clamp(min=0).minimum(torch.tensor([128.0, 96, 128, 96]))
        torch.testing.assert_close(boxes[image, 0], clipped)
        (alone,) = network([level[image : image + 1] for level in levels], SIZE).boxes
        torch.testing.assert_close(alone, boxes[image])
    few = RegionProposalNetwork(8, STRIDES[3:], 50)(levels[3:], SIZE)
    assert few.boxes.shape == (2, 36, 4)  # there are no more anchors


def test_regions_are_pooled_as_torchvision_pools_them() -> None:
    levels, boxes = pyramid(2), random_boxes(40, 5, images=2, most=100)
    pooled = pool_regions(levels, STRIDES, boxes, 7)
    # 112 pixels are 7 places of the stride 16, which is the fourth power of 2.
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=112, canonical_level=4)
    named = OrderedDict((str(place), level) for place, level in enumerate(levels))
    expected = theirs(named, list(boxes), [SIZE, SIZE])
    sides = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2).sqrt()
    assert {int(side) // 28 for side in sides.flatten()} >= {0, 1, 2}
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)


def test_boxes_that_are_no_numbers_are_pooled_without_reading_elsewhere() -> None:
    pooled = pool_regions(pyramid(), STRIDES, torch.full((1, 3, 4), torch.nan), 7)
    assert pooled.shape == (3, 8, 7, 7)
    assert pooled.isfinite().all()
