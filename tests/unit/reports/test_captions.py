"""Where the captions of boxes are placed."""

from __future__ import annotations

import pytest

from eagleray.reports.captions import Edges, place_caption

PICTURE = (200, 100)
BOX = Edges(50, 40, 110, 80)


def test_a_caption_is_in_the_upper_left_corner_of_its_box() -> None:
    assert place_caption(30, 10, BOX, [], PICTURE) == Edges(53, 41, 83, 51)


@pytest.mark.parametrize(
    ("taken", "place"),
    [
        ([Edges(50, 40, 70, 45)], Edges(77, 41, 107, 51)),  # at the right side
        ([Edges(50, 40, 110, 45)], Edges(53, 29, 83, 39)),  # above
        ([Edges(0, 0, 200, 45)], Edges(53, 81, 83, 91)),  # below
        ([Edges(0, 0, 200, 45), Edges(0, 85, 200, 90)], Edges(53, 51, 83, 61)),  # a row lower
        ([Edges(0, 0, 200, 100)], Edges(53, 41, 83, 51)),  # nowhere
    ],
)
def test_a_caption_makes_way_for_others(taken: list[Edges], place: Edges) -> None:
    assert place_caption(30, 10, BOX, taken, PICTURE) == place


def test_a_caption_stays_in_the_picture() -> None:
    taken = [Edges(0, 0, 60, 12)]
    assert place_caption(30, 10, Edges(0, 0, 60, 20), taken, PICTURE) == Edges(3, 21, 33, 31)


def test_captions_of_boxes_in_one_place_cover_no_other() -> None:
    taken: list[Edges] = []
    for _ in range(8):
        taken.append(place_caption(25, 10, BOX, taken, PICTURE))
    assert not any(
        one.covers(other) for number, one in enumerate(taken) for other in taken[:number]
    )
