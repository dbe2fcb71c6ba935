"""The JSON form of labelled objects, and the run lengths of masks from untrusted texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eagleray.core.errors import InputError
from eagleray.tasks.annotation import Annotation, TrueObject, parse_annotation
from eagleray.tasks.run_lengths import decode_runs

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
MASKS = SHAPES.flatmap(lambda shape: arrays(np.bool_, shape))


def text_of(pixels: np.ndarray) -> str:
    counts: bytes = coco.encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"]
    return counts.decode()


def runs_of(pixels: np.ndarray) -> list[int]:
    flat = pixels.ravel(order="F")
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1), len(flat)]
    return ([0] if flat[0] else []) + list(np.diff(edges))


@given(MASKS)
def test_runs_are_those_that_the_tools_of_coco_write(pixels: np.ndarray) -> None:
    height, width = pixels.shape
    assert decode_runs(text_of(pixels), height, width).tolist() == runs_of(pixels)


def test_long_runs_are_decoded() -> None:
    pixels = np.zeros((3000, 4000), bool)
    pixels[10:2900, 5:3990] = True
    assert decode_runs(text_of(pixels), 3000, 4000).tolist() == runs_of(pixels)


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ("", "empty"),
        ("é", "empty or damaged"),
        ("5 ", "characters"),
        ("5~", "characters"),
        ("T", "end early"),
        ("PPPPPPP0", "too long"),
        ("l0", "pixels"),
        ("O5", "negative"),
    ],
)
def test_damaged_runs_are_refused(counts: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        decode_runs(counts, 2, 3)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
def test_any_text_is_decoded_or_refused(counts: str) -> None:
    try:
        runs = decode_runs(counts, 5, 6)
    except ValueError:
        return
    assert runs.sum() == 30
    assert coco.area({"size": [5, 6], "counts": counts.encode()}) == runs[1::2].sum()


def test_masks_of_huge_images_are_refused() -> None:
    with pytest.raises(ValueError, match="the limit is 268,435,456"):
        decode_runs("0", 1_000_000, 1_000_000)


def test_a_box_in_the_corner_keeps_its_zeros() -> None:
    one = TrueObject(label="cell", x=0.0, y=0.0, width=2.0, height=3.0)
    text = Annotation(width=4, height=5, objects=(one,)).to_text()
    assert json.loads(text)["objects"] == [
        {"label": "cell", "x": 0.0, "y": 0.0, "width": 2.0, "height": 3.0}
    ]
    assert parse_annotation(text).objects == (one,)


def test_an_image_without_objects_keeps_its_empty_list() -> None:
    assert Annotation(width=4, height=5).to_text() == '{"height":5,"objects":[],"width":4}'


def test_a_damaged_mask_names_its_field() -> None:
    mask = {"size": [2, 3], "counts": "T"}
    one = {"label": "cell", "x": 0, "y": 0, "width": 1, "height": 1, "mask": mask}
    with pytest.raises(InputError, match=r"objects\.0\.mask.*end early"):
        parse_annotation(json.dumps({"width": 3, "height": 2, "objects": [one]}))
