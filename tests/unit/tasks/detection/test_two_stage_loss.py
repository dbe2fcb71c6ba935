"""The loss of a detector with two stages: what counts how much, and what right predictions cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.roi_heads import fastrcnn_loss

from eagleray.tasks.detection.anchor_loss import deltas_of
from eagleray.tasks.detection.loss import detection_losses
from eagleray.tasks.detection.objects import CROWD, OBJECT
from eagleray.tasks.detection.two_stage_loss import sample_weights

BOXES = torch.tensor(
    [[0.0, 0, 10, 10], [0, 0, 20, 10], [30, 30, 50, 50], [32, 32, 50, 50], [60, 60, 64, 64]]
)
TRUE = (30.0, 30, 50, 50, 1, OBJECT)  # of the boxes 2 and 3
SURE = 12.0


def objects(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[[64.0, 64, 0, 0, 0, 0], *rows]])


def right() -> dict[str, Tensor]:
    """Return outputs that predict the true object, with the same boxes in both stages."""
    is_object = torch.tensor([0.0, 0, 1, 1, 0])
    deltas = torch.zeros(1, 5, 4)
    deltas[0, 2:4] = deltas_of(torch.tensor([TRUE[:4]] * 2), BOXES[2:4])
    certain = (2 * is_object - 1) * SURE
    logits = torch.full((1, 5, 2), -SURE)
    logits[0, :, 1] = certain
    return {
        "logits": logits,
        "background": -certain[None],
        "proposals": BOXES[None],
        "deltas": deltas,
        "anchors": BOXES[None],
        "objectness": certain[None],
        "anchor_deltas": deltas.clone(),
    }


def loss(targets: Tensor, **changes: Tensor) -> float:
    return detection_losses({**right(), **changes}, targets).item()


def test_right_predictions_cost_nearly_nothing_and_wrong_ones_more() -> None:
    found, targets = right(), objects(TRUE)
    assert loss(targets) < 1e-3
    assert loss(targets, objectness=-found["objectness"]) > 1
    assert loss(targets, background=-found["background"]) > 1
    assert loss(targets, logits=found["logits"].flip(2)) > 1
    assert loss(targets, deltas=found["deltas"] + 1) > 1
    assert loss(targets, anchor_deltas=found["anchor_deltas"] + 1) > 1


def test_differences_count_linearly_from_a_ninth_on_in_both_stages() -> None:
    found, targets = right(), objects(TRUE)
    moved = found["anchor_deltas"].clone()
    moved[0, 2] += 0.3
    moved[0, 0] += 9  # the background has no box
    one = 4 * (0.3 - 0.5 / 9) / 5  # of five anchors
    assert loss(targets, anchor_deltas=moved) == pytest.approx(one, rel=1e-3)
    other = (2 * (3 - 0.5 / 9) + 2 * (1.5 - 0.5 / 9)) / 5  # in units of 1/10 and 1/5
    moved = found["deltas"].clone()
    moved[0, 2] += 0.3
    assert loss(targets, deltas=moved) == pytest.approx(other, rel=1e-3)


def test_between_the_limits_an_anchor_does_not_count_and_a_proposal_does() -> None:
    # The object overlaps the box 0 by 100 / 150 and the box 1 by 150 / 200.
    targets = objects((0.0, 0, 15, 10, 0, OBJECT))
    changed = right()
    changed["objectness"][0, 0] = SURE
    assert loss(targets, objectness=changed["objectness"]) == loss(targets)
    changed["objectness"][0, 4] = SURE
    assert loss(targets, objectness=changed["objectness"]) > loss(targets) + 1
    changed["logits"][0, 0, 0] = SURE
    assert loss(targets, logits=changed["logits"]) < loss(targets) - 1


def test_a_proposal_that_overlaps_an_object_little_is_of_the_background() -> None:
    targets = objects((61.0, 61, 62, 62, 0, OBJECT))  # in the box 4
    changed = right()["logits"].clone()
    changed[0, 4, 0] = SURE
    assert loss(targets, logits=changed) == loss(targets)
    objectness = right()["objectness"].clone()
    objectness[0, 4] = SURE  # its anchor is the best one that there is
    assert loss(targets, objectness=objectness) < loss(targets) - 1


def test_crowds_are_neither_right_nor_wrong() -> None:
    whole = (0.0, 0, 64, 64, 0, CROWD)
    wrong = {"objectness": torch.full((1, 5), 6.0), "background": torch.full((1, 5), -6.0)}
    assert loss(objects(whole), **wrong) == 0
    assert loss(objects(), **wrong) == pytest.approx(12, abs=0.1)


def test_every_output_has_a_gradient_even_without_objects() -> None:
    leaves = {
        name: value.clone().requires_grad_(name not in ("anchors", "proposals"))
        for name, value in right().items()
    }
    detection_losses(leaves, objects()).sum().backward()  # type: ignore[no-untyped-call]
    for name in ("background", "objectness", "deltas", "anchor_deltas", "logits"):
        assert leaves[name].grad is not None, name


def test_weights_are_the_mean_of_random_samples() -> None:
    torch.manual_seed(0)
    is_object, is_free = torch.zeros(1, 60, dtype=torch.bool), torch.zeros(1, 60, dtype=torch.bool)
    is_object[0, :12] = True
    is_free[0, 12:50] = True
    weights = sample_weights(is_object, is_free, 20, 8)
    labels = torch.where(is_object, 1.0, torch.where(is_free, 0.0, -1.0))
    sampler = BalancedPositiveNegativeSampler(20, 0.4)
    total = torch.zeros(60)
    for _ in range(2000):
        drawn = torch.stack([one[0] for one in sampler([labels[0]])]).sum(dim=0)
        total += drawn / drawn.sum()
    torch.testing.assert_close(weights[0], total / 2000, atol=3e-3, rtol=0)
    assert weights.sum().item() == pytest.approx(1)
    assert sample_weights(is_object & is_free, is_object & is_free, 20, 8).sum() == 0


def test_the_second_stage_is_that_of_torchvision_where_all_proposals_are_drawn() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(5, 3, generator=generator)
    deltas = torch.randn(5, 4, generator=generator) * 0.1
    shares = scores.softmax(dim=1)
    logits = (shares.log() - (1 - shares).log())[None]
    silent = right()
    found = detection_losses(
        {
            **silent,
            "logits": logits[..., 1:],
            "background": logits[..., 0],
            "deltas": deltas[None] * torch.tensor([0.1, 0.1, 0.2, 0.2]),
        },
        objects(TRUE),
    ).item()
    labels = torch.tensor([0, 0, 2, 2, 0])
    true = silent["deltas"][0] * torch.tensor([10.0, 10, 5, 5])
    of_labels, of_boxes = fastrcnn_loss(scores, deltas.repeat(1, 3), [labels], [true])
    assert found == pytest.approx((of_labels + of_boxes).item(), rel=1e-3)
    assert math.isfinite(found)
