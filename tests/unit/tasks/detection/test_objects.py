"""Objects as rows: targets and their moves, the choice of detections, and how far two sets are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from eagleray.core.errors import InputError
from eagleray.imaging import Exact, ImageContract, Letterbox
from eagleray.imaging.geometry import Placement, frame_of
from eagleray.tasks.annotation import parse_annotation
from eagleray.tasks.detection.objects import (
    CROWD,
    OBJECT,
    box_iou,
    detections_in_original,
    encode_annotation,
    move_targets,
    object_difference,
    select_objects,
    stack_targets,
    targets_in_input,
)
from tests.support.detection import annotation

LABELS = ("cat", "dog")


def select(
    boxes: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], max_objects: int = 5
) -> torch.Tensor:
    return select_objects(
        torch.tensor([boxes], dtype=torch.float32),
        torch.tensor([scores], dtype=torch.float32),
        max_objects=max_objects,
        min_score=0.1,
        max_overlap=0.5,
    )[0]


# --- targets ---


def test_targets_are_the_size_and_the_objects_of_an_image() -> None:
    text = annotation(("dog", 1, 2, 10, 20), ("cat", 5, 5, 1, 1))
    assert encode_annotation(parse_annotation(text), LABELS) == [
        [96, 64, 0, 0, 0, 0],
        [1, 2, 11, 22, 1, OBJECT],
        [5, 5, 6, 6, 0, OBJECT],
    ]
    with pytest.raises(InputError, match="Label 'cow' is not one of the model's: cat, dog"):
        encode_annotation(parse_annotation(annotation(("cow", 1, 2, 3, 4))), LABELS)


def test_a_crowd_is_neither_right_nor_wrong() -> None:
    text = (
        '{"width": 9, "height": 8, "objects": [{"label": "cat", "x": 0, "y": 0, "width": 4,'
        ' "height": 4, "crowd": true}]}'
    )
    assert encode_annotation(parse_annotation(text), LABELS)[1][5] == CROWD


def test_images_with_fewer_objects_are_filled_with_rows_of_kind_zero() -> None:
    one = [[9.0, 8, 0, 0, 0, 0]]
    two = [*one, [1.0, 2, 3, 4, 1, OBJECT]]
    targets = stack_targets([one, two])
    assert targets.shape == (2, 2, 6)
    assert targets[0, 1].tolist() == [0] * 6
    assert targets[1].tolist() == two


@pytest.mark.parametrize(
    ("contract", "expected"),
    [
        # 96 x 64 into 48 x 48: half as large, with 8 rows above and below
        (ImageContract(resize=Letterbox(height=48, width=48)), [5, 18, 15, 23]),
        (ImageContract(resize=Exact(height=32, width=192)), [20, 10, 60, 15]),
    ],
)
def test_targets_follow_the_contract(contract: ImageContract, expected: list[float]) -> None:
    encoded = encode_annotation(parse_annotation(annotation(("cat", 10, 20, 20, 10))), LABELS)
    (moved,) = targets_in_input(stack_targets([encoded]), contract)
    assert moved[1].tolist() == [*expected, 0, OBJECT]
    assert moved[0, :2].tolist() == [contract.size[1], contract.size[0]]


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(20, 4000),
    height=st.integers(20, 4000),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    letterbox=st.booleans(),
)
def test_a_box_comes_back_from_the_input_to_where_it_was(
    width: int, height: int, corners: list[float], letterbox: bool
) -> None:
    fit = Letterbox if letterbox else Exact
    contract = ImageContract(resize=fit(height=320, width=416))
    x1, x2 = sorted((corners[0] * width, corners[1] * width))
    y1, y2 = sorted((corners[2] * height, corners[3] * height))
    targets = torch.tensor([[[width, height, 0, 0, 0, 0], [x1, y1, x2, y2, 1, OBJECT]]])
    box = targets_in_input(targets, contract)[0, 1, :4].tolist()
    rows = np.array([[*box, 0.9, 1]], np.float32)
    (back,) = detections_in_original(rows, frame_of(contract, width, height))
    assert back[:4] == pytest.approx([x1, y1, x2, y2], abs=0.5)


def test_boxes_are_cut_off_at_the_edges_of_the_original() -> None:
    contract = ImageContract(resize=Letterbox(height=48, width=48))
    rows = np.array([[-5, 0, 60, 60, 0.9, 1], [0, 0, 0, 0, 0, 0]], np.float32)
    found = detections_in_original(rows, frame_of(contract, 96, 64))
    assert found.tolist() == [[0, 0, 96, 64, pytest.approx(0.9), 1], [0] * 6]


WINDOW = (0, 0, 100, 50)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement(), [10, 10, 30, 20, OBJECT]),
        (Placement(scale_x=-1, shift_x=100), [70, 10, 90, 20, OBJECT]),
        (Placement(scale_y=-1, shift_y=50), [10, 30, 30, 40, OBJECT]),
        (Placement(scale_x=2, scale_y=0.5), [20, 5, 60, 10, OBJECT]),
        (Placement(shift_x=-20), [0, 10, 10, 20, OBJECT]),  # half of it is left
        (Placement(shift_x=-28), [0, 10, 2, 20, CROWD]),  # a tenth of it is left
    ],
)
def test_targets_move_with_their_pixels(placement: Placement, expected: list[float]) -> None:
    targets = torch.tensor([[100, 50, 0, 0, 0, 0], [10, 10, 30, 20, 1.0, OBJECT]])
    moved = move_targets(targets, placement, WINDOW)
    assert moved[1, [0, 1, 2, 3, 5]].tolist() == expected


def test_an_object_that_has_left_the_image_is_gone() -> None:
    targets = torch.tensor([[100, 50, 0, 0, 0, 0], [10, 10, 30, 20, 1.0, OBJECT]])
    assert len(move_targets(targets, Placement(shift_x=200), WINDOW)) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=10, max_size=10))
def test_two_placements_are_one_after_the_other(numbers: list[float]) -> None:
    first, second = Placement(*numbers[:4]), Placement(*numbers[4:8])
    x, y = numbers[8:]
    once = (x * first.scale_x + first.shift_x, y * first.scale_y + first.shift_y)
    twice = (
        once[0] * second.scale_x + second.shift_x,
        once[1] * second.scale_y + second.shift_y,
    )
    both = first.then(second)
    found = (x * both.scale_x + both.shift_x, y * both.scale_y + both.shift_y)
    assert found == pytest.approx(twice, abs=1e-9)


# --- detections ---


def test_of_boxes_that_overlap_the_best_of_each_label_stays() -> None:
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]
    rows = select(boxes, [[0.8, 0.0], [0.9, 0.6], [0.05, 0.3]])
    assert rows[:, 4].tolist() == pytest.approx([0.9, 0.6, 0.3, 0, 0])
    assert rows[:3, 5].tolist() == [0, 1, 1]
    assert rows[2, :4].tolist() == boxes[2]


def test_equal_scores_are_in_the_order_of_their_places() -> None:
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]
    rows = select(boxes, [[0.5, 0.0], [0.5, 0.0], [0.5, 0.5]])
    assert rows[:3, :4].tolist() == [boxes[0], boxes[2], boxes[2]]
    assert rows[:3, 5].tolist() == [0, 0, 1]


def test_an_image_has_the_same_objects_alone_and_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 400, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 10], dim=2)
    scores = (torch.rand(3, 400, 4, generator=generator) * 8).round() / 8  # many ties
    choose = partial(select_objects, max_objects=50, min_score=0.2, max_overlap=0.4)
    together = choose(boxes, scores)
    for place in range(3):
        alone = choose(boxes[place : place + 1], scores[place : place + 1])
        assert torch.equal(together[place], alone[0])
    kept = together[0]
    for label in range(4):
        own = kept[(kept[:, 5] == label) & (kept[:, 4] > 0), :4].numpy()
        overlaps = box_iou(own, own)
        assert (overlaps[~np.eye(len(own), dtype=bool)] <= 0.4 + 1e-6).all()


def test_outputs_that_are_not_finite_are_said() -> None:
    assert select([[0, 0, math.inf, 1]], [[0.5, 0.5]]).isnan().all()


def test_the_largest_number_of_objects_is_kept() -> None:
    boxes = [[20.0 * index, 0, 20 * index + 10, 10] for index in range(9)]
    rows = select(boxes, [[0.1 + 0.1 * index, 0] for index in range(9)], max_objects=3)
    assert rows[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.7])


def rows_of(*objects: tuple[float, ...]) -> npt.NDArray[np.float64]:
    rows = np.zeros((4, 6))
    for place, one in enumerate(objects):
        rows[place] = one
    return rows


CAT, DOG = (0.0, 0, 10, 10, 0.8, 0), (50.0, 50, 60, 60, 0.4, 1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((CAT, DOG), 0.0),
        (((0, 0, 10, 10, 0.7, 0), DOG), 0.1 * (0.49 + 0.64) / (0.7 + 0.8 + 0.4 * 2)),
        (((0, 0, 10, 5, 0.8, 0), DOG), 0.5 * 2 * 0.64 / 2.4),
        ((CAT,), 0.16 / 2.0),  # the dog is missing, of which the other side was not sure
        (((0, 0, 10, 10, 0.8, 1), DOG), 2 * 0.64 / 2.4),  # another label
        ((), (0.64 + 0.16) / 1.2),
    ],
)
def test_how_far_objects_are_from_those_expected(
    found: tuple[tuple[float, ...], ...], expected: float
) -> None:
    assert object_difference(rows_of(*found), rows_of(CAT, DOG)) == pytest.approx(expected)
    assert object_difference(rows_of(CAT, DOG), rows_of(*found)) == pytest.approx(expected)


def test_doubtful_objects_that_come_and_go_are_a_small_difference() -> None:
    some, others = (
        np.array([[20.0 * place, 0, 20 * place + 10, 10, 0.06, 0] for place in range(*numbers)])
        for numbers in ((0, 50), (40, 90))
    )
    assert object_difference(some, others) < 0.06


def test_no_objects_do_not_differ_and_nan_is_said() -> None:
    assert object_difference(rows_of(), rows_of()) == 0.0
    assert math.isnan(object_difference(rows_of((math.nan,) * 6), rows_of(CAT)))


def test_many_candidates_are_suppressed_as_if_all_were_compared() -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(900, 2, generator=generator) * 300
    boxes = torch.cat([corners, corners + 10 + 60 * torch.rand(900, 2, generator=generator)], dim=1)
    scores = torch.rand(900, 2, generator=generator)
    for max_objects in (1, 7, 300):
        found = select_objects(
            boxes[None], scores[None], max_objects=max_objects, min_score=0.5, max_overlap=0.3
        )[0]
        best = scores.flatten().argsort(descending=True, stable=True)
        best = best[scores.flatten()[best] >= 0.5][:1000]
        shifted = boxes[best // 2].double() + 1000 * (best % 2)[:, None]
        kept = best[nms(shifted, scores.flatten()[best].double(), 0.3)][:max_objects]
        found = found[found[:, 4] > 0]
        assert torch.equal(found[:, 4], scores.flatten()[kept])
        assert torch.equal(found[:, :4], boxes[kept // 2])
