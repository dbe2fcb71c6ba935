"""The losses of FCOS and of detectors with anchors, and which anchors predict which object."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from eagleray.core.errors import InputError
from eagleray.models.networks.anchors import decode
from eagleray.tasks.detection.anchor_loss import deltas_of
from eagleray.tasks.detection.assignment import BACKGROUND, UNDECIDED, assign_anchors, objects_of
from eagleray.tasks.detection.fcos_loss import _centreness
from eagleray.tasks.detection.loss import detection_losses
from eagleray.tasks.detection.objects import CROWD, OBJECT

ANCHORS = torch.tensor(
    [[0.0, 0, 10, 10], [0, 0, 20, 10], [30, 30, 50, 50], [32, 32, 50, 50], [60, 60, 64, 64]]
)
SURE = 12.0


def objects(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[[64.0, 64, 0, 0, 0, 0], *rows]])


def assigned_to(*rows: tuple[float, ...]) -> list[int]:
    found = assign_anchors(ANCHORS, objects_of(objects(*rows)), min_overlap=0.5, max_background=0.4)
    return [int(one) for one in found[0]]


def test_anchors_predict_what_they_overlap_most() -> None:
    first, second = (0.0, 0, 11, 10, 0, OBJECT), (30.0, 30, 50, 50, 1, OBJECT)
    # 100 / 110, 110 / 200, 1 and 0.81; the last anchor overlaps none.
    assert assigned_to(first, second) == [0, 0, 1, 1, BACKGROUND]
    # 100 / 220 is neither enough for an object nor little enough for the background.
    assert assigned_to((0.0, 0, 22, 10, 0, OBJECT))[0] == UNDECIDED


def test_every_object_has_the_anchor_that_it_overlaps_most() -> None:
    assert assigned_to((61.0, 61, 62, 62, 0, OBJECT)) == [BACKGROUND] * 4 + [0]
    # Two objects with one best anchor: the one that overlaps it more has it.
    assert assigned_to((61.0, 61, 62, 62, 0, OBJECT), (60.0, 60, 62, 63, 1, OBJECT))[4] == 1


def test_crowds_and_empty_boxes_are_no_objects() -> None:
    assert assigned_to((0.0, 0, 10, 10, 0, CROWD), (0.0, 0, 0, 0, 0, 0)) == [BACKGROUND] * 5
    assert assigned_to() == [BACKGROUND] * 5


def test_the_assignment_is_that_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(300, 4, generator=generator) * 50
    anchors[:, 2:] += anchors[:, :2] + 5
    boxes = torch.rand(6, 4, generator=generator) * 50
    boxes[:, 2:] += boxes[:, :2] + 10
    rows = torch.cat([boxes, torch.zeros(6, 1), torch.full((6, 1), float(OBJECT))], dim=1)
    found = assign_anchors(anchors, rows[None], min_overlap=0.5, max_background=0.4)[0]
    overlaps = box_iou(boxes, anchors)
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=False)(overlaps)
    expected[overlaps.argmax(dim=1)] = torch.arange(6)
    assert (expected >= 0).sum() > 6
    assert torch.equal(found, expected)


def test_differences_are_those_of_torchvision_and_decode_makes_boxes_of_them() -> None:
    boxes = ANCHORS + torch.tensor([1.0, -2, 5, 3])
    deltas = deltas_of(boxes, ANCHORS)
    (expected,) = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode([boxes], [ANCHORS])
    torch.testing.assert_close(deltas, expected)
    torch.testing.assert_close(decode(deltas[None], ANCHORS)[0], boxes)


def focal(logits: Tensor, deltas: Tensor) -> dict[str, Tensor]:
    return {"logits": logits[None], "deltas": deltas[None], "anchors": ANCHORS[None]}


def multibox(scores: Tensor, deltas: Tensor) -> dict[str, Tensor]:
    """Return outputs of scores (A, 1 + C), the background's first."""
    shares = scores.softmax(dim=1).clamp(1e-6, 1 - 1e-6)
    logits = (shares.log() - (1 - shares).log())[None]
    return {**focal(logits[0, :, 1:], deltas), "background": logits[..., 0]}


TRUE = (30.0, 30, 50, 50, 1, OBJECT)  # of the anchors 2 and 3


def right() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, scores with a background, and differences that predict the true object."""
    logits = torch.full((5, 2), -SURE)
    logits[2:4, 1] = SURE
    scores = torch.cat([torch.zeros(5, 1), logits], dim=1)
    deltas = torch.zeros(5, 4)
    deltas[2:4] = deltas_of(torch.tensor([TRUE[:4]] * 2), ANCHORS[2:4])
    return logits, scores, deltas


def test_right_predictions_cost_nearly_nothing_and_wrong_ones_more() -> None:
    logits, scores, deltas = right()
    targets = objects(TRUE)
    for make, outputs in ((focal, logits), (multibox, scores)):
        assert detection_losses(make(outputs, deltas), targets).item() < 1e-3
        assert detection_losses(make(outputs, deltas + 1), targets).item() > 1
        swapped = outputs.clone()
        swapped[:, -2:] = swapped[:, -2:].flip(1)
        assert detection_losses(make(swapped, deltas), targets).item() > 1


def test_the_loss_of_boxes_is_of_the_anchors_with_an_object() -> None:
    logits, scores, deltas = right()
    deltas[2] += 0.3
    assert detection_losses(focal(logits, deltas), objects(TRUE)).item() == pytest.approx(
        4 * 0.3 / 2, rel=1e-3
    )
    # Smooth beyond 1, in units of 1/10 and 1/5: 3 - 0.5 and 1.5 - 0.5, each twice, of two anchors.
    assert detection_losses(multibox(scores, deltas), objects(TRUE)).item() == pytest.approx(
        (2 * 2.5 + 2 * 1.0) / 2, rel=1e-3
    )
    deltas[0] += 9
    assert detection_losses(focal(logits, deltas), objects(TRUE)).item() == pytest.approx(0.6, 1e-3)


def test_three_hard_anchors_of_the_background_count_for_each_of_an_object() -> None:
    anchors = torch.cat([ANCHORS[2:3], torch.zeros(8, 4) + torch.tensor([0.0, 0, 4, 4])])
    chances = torch.tensor([0.5, *(0.1 * place for place in range(1, 9))])  # of the label
    outputs = {
        "logits": chances.logit()[None, :, None],
        "background": (1 - chances).logit()[None],
        "deltas": torch.zeros(1, 9, 4),
        "anchors": anchors[None],
    }
    expected = -sum(math.log(1 - chance) for chance in (0.6, 0.7, 0.8)) - math.log(0.5)
    loss = detection_losses(outputs, objects((30.0, 30, 50, 50, 0, OBJECT))).item()
    assert loss == pytest.approx(expected, rel=1e-4)
    nothing = detection_losses(outputs, objects()).item()
    assert nothing == pytest.approx(expected + math.log(0.5), rel=1e-4)


def test_anchors_in_a_crowd_are_neither_right_nor_wrong() -> None:
    whole = (0.0, 0, 64, 64, 0, CROWD)
    wrong, deltas = torch.full((5, 2), 6.0), torch.zeros(5, 4)
    assert detection_losses(focal(wrong, deltas), objects(whole)).item() == 0
    scores = torch.tensor([[0.0, 6, 6]] * 5)
    assert detection_losses(multibox(scores, deltas), objects(whole)).item() == 0
    assert detection_losses(focal(wrong, deltas), objects()).item() > 1


def test_the_losses_of_images_do_not_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, deltas = (torch.randn(2, 5, n, generator=generator) for n in (3, 4))
    both = torch.cat([objects(TRUE, (0.0, 0, 9, 9, 0, OBJECT)), objects(TRUE, (0.0,) * 6)])
    for make in (focal, multibox):
        alone = [
            make(*one)
            for one in zip(scores[:, :, -2:] if make is focal else scores, deltas, strict=True)
        ]
        together = {name: torch.cat([one[name] for one in alone]) for name in alone[0]}
        found = detection_losses(together, both)
        for place, outputs in enumerate(alone):
            own = detection_losses(outputs, both[place : place + 1])
            torch.testing.assert_close(found[place], own[0])


def fcos(boxes: Tensor, labels: Tensor, centreness: Tensor, points: Tensor) -> dict[str, Tensor]:
    return {
        "boxes": boxes[None],
        "label_logits": labels[None],
        "centreness": centreness[None],
        "points": points[None],
    }


def test_points_of_fcos_predict_the_object_that_they_are_in() -> None:
    points = torch.tensor([[12.0, 12, 8], [4, 12, 8], [20, 12, 8], [60, 60, 8]])
    box = torch.tensor([6.0, 6, 22, 18])  # the second point is near its centre, and outside
    boxes = box.repeat(4, 1)
    labels = torch.full((4, 2), -SURE)
    labels[[0, 2], 0] = SURE
    centreness = torch.tensor([0.6, 1 / 7]).sqrt()
    logits = torch.zeros(4)
    logits[[0, 2]] = centreness.logit()
    targets = objects((*box.tolist(), 0, OBJECT))
    entropy = -(centreness * centreness.log() + (1 - centreness) * (1 - centreness).log())
    loss = detection_losses(fcos(boxes, labels, logits, points), targets).item()
    assert loss == pytest.approx(entropy.mean().item(), abs=1e-3)
    moved = detection_losses(fcos(boxes + 10, labels, logits, points), targets).item()
    assert moved > loss + 0.5
    labels[1] = SURE
    assert detection_losses(fcos(boxes, labels, logits, points), targets).item() > loss + 1


def test_the_middle_of_a_box_has_the_centreness_1_and_an_edge_0() -> None:
    box = torch.tensor([[0.0, 0, 16, 8]] * 3)
    places = torch.tensor([[8.0, 4], [16, 4], [4, 4]])
    assert _centreness(places, box).tolist() == pytest.approx([1, 0, math.sqrt(1 / 3)])


def test_a_network_with_neither_points_nor_anchors_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"tensors boxes, logits, .* needs `points` or `anchors`"):
        detection_losses({"boxes": torch.zeros(1), "logits": torch.zeros(1)}, objects())
