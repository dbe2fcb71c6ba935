"""Maps of classes: drawn from masks, moved with the pixels of an image, and taken from outputs."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from eagleray.core.errors import InputError
from eagleray.imaging import decode, named_contract
from eagleray.imaging.geometry import Frame, Placement, frame_of
from eagleray.tasks.annotation import Annotation, TrueObject
from eagleray.tasks.segmentation.class_maps import (
    IGNORED,
    ClassMaps,
    class_map,
    decode_mask,
    encode_mask,
    join_maps,
    likeliest_classes,
    map_in_input,
    move_map,
)
from eagleray.training.loop.augment import StepAugmentation
from tests.support.segmented import annotation_of, disk
from tests.support.training import small_spec

LABELS = ("background", "cat", "dog")
SIZE = (20, 30)
LETTERBOX = named_contract("letterbox", size=32)


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    pixels = np.zeros(SIZE, np.bool_)
    pixels[top : top + height, left : left + width] = True
    return pixels


# --- from annotations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "masks",
    [
        {"cat": box(2, 3, 4, 5), "dog": box(4, 6, 2, 9)},
        {"cat": box(0, 0, 20, 30), "dog": disk(SIZE, 10, 10, 8)},
        {"dog": disk(SIZE, 29, 19, 3), "cat": box(19, 29, 1, 1)},
        {"dog": np.zeros(SIZE, np.bool_)},
    ],
)
def test_later_masks_are_drawn_over_earlier_ones(masks: dict[str, np.ndarray]) -> None:
    expected = np.zeros(SIZE, np.uint8)
    for label, pixels in masks.items():
        expected[pixels] = LABELS.index(label)
    found = class_map(annotation_of(masks), LABELS)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_pixels_of_a_crowd_are_ignored() -> None:
    crowd = box(5, 5, 3, 3)
    found = class_map(annotation_of({"cat": box(0, 0, 10, 10)}, crowds={"dog": crowd}), LABELS)
    assert (found[crowd] == IGNORED).all()
    assert found[0, 0] == 1
    assert (found == IGNORED).sum() == 9


def test_an_annotation_without_objects_is_background() -> None:
    assert not class_map(Annotation(width=30, height=20), LABELS).any()


def test_what_cannot_be_drawn_is_refused_in_one_sentence() -> None:
    plain = TrueObject(label="cat", x=1, y=2, width=3, height=4)
    with pytest.raises(InputError, match=r"'cat' at 1, 2 has a box and no mask; segm"):
        class_map(Annotation(width=30, height=20, objects=(plain,)), LABELS)
    cat = annotation_of({"cat": box(0, 0, 1, 1)})
    with pytest.raises(InputError, match=r"of 20 x 30 pixels, and its image of 30 x 20"):
        class_map(cat.model_copy(update={"width": 20, "height": 30}), LABELS)
    with pytest.raises(InputError, match="'cat' is not one of the model's: sky, dog"):
        class_map(cat, ("sky", "dog"))


def test_a_map_in_the_input_is_where_the_pixels_are() -> None:
    pixels = disk((45, 70), 40, 20, 14)
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).convert("RGB").save(content, "png")
    seen = decode(content.getvalue(), LETTERBOX).pixels[..., 0]
    found = map_in_input(class_map(annotation_of({"cat": pixels}), LABELS), LETTERBOX)
    assert found.shape == LETTERBOX.size
    rows = (found != IGNORED).any(axis=1)
    assert rows.sum() == round(45 * 32 / 70)
    assert (seen[~rows] == 114).all()
    clear = rows[:, None] & ((seen < 50) | (seen > 205))
    np.testing.assert_array_equal(found[clear] == 1, seen[clear] > 127)


def test_maps_are_drawn_when_they_are_read() -> None:
    texts = [annotation_of({"cat": box(0, 0, 20, number)}).to_text() for number in (6, 15)]
    maps = ClassMaps([*texts, "damaged"], LABELS, LETTERBOX)
    assert maps[1].dtype == torch.uint8
    both = maps[np.array([1, 0])]
    assert both.shape == (2, 32, 32)
    assert torch.equal(both[0], maps[1])
    assert (both[0] == 1).sum() > 2 * (both[1] == 1).sum()
    with pytest.raises(InputError, match="'damaged' does not say"):
        maps[2]


# --- in training --------------------------------------------------------------------------------


def random_map(seed: int = 0, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 3, (side, side), dtype=torch.uint8, generator=_generator(seed))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WHOLE = (0, 0, 16, 16)


def test_a_map_moves_as_pixels_do() -> None:
    one = random_map()
    assert torch.equal(move_map(one, Placement(), WHOLE), one)
    flipped = move_map(one, Placement(scale_x=-1, shift_x=16), WHOLE)
    assert torch.equal(flipped, one.flip(1))
    assert torch.equal(move_map(one, Placement(scale_y=-1, shift_y=16), WHOLE), one.flip(0))
    shifted = move_map(one, Placement(shift_x=3, shift_y=-2), WHOLE)
    assert torch.equal(shifted[:14, 3:], one[2:, :13])
    assert (shifted[14:] == IGNORED).all()
    assert (shifted[:, :3] == IGNORED).all()
    enlarged = move_map(one, Placement(2, 2, -8, -8), WHOLE)
    assert torch.equal(enlarged, one[4:12, 4:12].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_maps_of_a_mosaic_are_joined() -> None:
    maps = [random_map(seed) for seed in range(2)]
    windows = [(0, 0, 6, 16), (6, 0, 16, 16)]
    joined = join_maps(
        [move_map(one, Placement(), window) for one, window in zip(maps, windows, strict=True)]
    )
    assert torch.equal(joined[:, :6], maps[0][:, :6])
    assert torch.equal(joined[:, 6:], maps[1][:, 6:])


@pytest.mark.parametrize("row", range(6))
def test_augmented_pixels_and_their_map_agree(row: int) -> None:
    spec = small_spec(
        "d",
        random_resized_crop=0.3,
        random_translation=0.2,
        horizontal_flip=True,
        vertical_flip=True,
    )
    inside = disk((64, 64), 25, 30, 17)
    pixels = np.repeat((inside * 200 + 40).astype(np.uint8)[:, :, None], 3, axis=2)
    augmentation = StepAugmentation(spec, epoch=0, step=row, num_images=8)
    moved, placement, window = augmentation.apply(pixels, row, (64, 64))
    classes = move_map(torch.from_numpy(inside.astype(np.uint8)), placement, window).numpy()
    known = (classes != IGNORED) & ((moved[..., 0] < 60) | (moved[..., 0] > 220))
    assert known.mean() > 0.5
    np.testing.assert_array_equal(classes[known] == 1, moved[..., 0][known] > 127)
    assert (moved[classes == IGNORED] == 0).all()


# --- predictions --------------------------------------------------------------------------------


def random_probabilities(num_labels: int, height: int, width: int) -> np.ndarray:
    logits = torch.randn(1, num_labels, height // 4, width // 4, generator=_generator(0)) * 3
    smooth = functional.interpolate(logits, size=(height, width), mode="bicubic")
    return smooth[0].softmax(dim=0).numpy()


@pytest.mark.parametrize(
    ("width", "height"), [(96, 48), (20, 31), (1600, 1200), (64, 64), (3, 500), (2500, 1400)]
)
def test_classes_are_those_of_enlarged_probabilities(width: int, height: int) -> None:
    contract = named_contract("letterbox", size=64)
    probabilities = random_probabilities(3, 64, 64)
    frame = frame_of(contract, width, height)
    found = likeliest_classes(probabilities, frame)
    top, left = -frame.top, -frame.left
    rows, columns = round(height / frame.scale_y), round(width / frame.scale_x)
    known = torch.from_numpy(probabilities[:, top : top + rows, left : left + columns])
    wide = functional.interpolate(known[None], size=(height, width), mode="bilinear")[0]
    best = wide.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert found.shape == (height, width)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], wide.argmax(dim=0).numpy()[clear])


def test_a_class_map_that_goes_in_comes_out() -> None:
    whole = class_map(annotation_of({"cat": disk((300, 200), 90, 120, 60)}), LABELS)
    contract = named_contract("letterbox", size=128)
    inside = map_in_input(whole, contract)
    probabilities = np.stack([(inside == index).astype(np.float32) for index in range(3)])
    found = likeliest_classes(probabilities, frame_of(contract, 200, 300))
    assert (found == whole).mean() > 0.985


def test_what_a_crop_has_cut_off_repeats_the_edge() -> None:
    frame = Frame(40, 20, left=10, top=0)
    probabilities = np.zeros((2, 20, 20), np.float32)
    probabilities[0, :, :10] = probabilities[1, :, 10:] = 1
    found = likeliest_classes(probabilities, frame)
    assert (found[:, :20] == 0).all()
    assert (found[:, 20:] == 1).all()


def test_24_megapixels_take_little_memory() -> None:
    probabilities = random_probabilities(8, 64, 64)
    frame = frame_of(named_contract("letterbox", size=64), 6000, 4000)
    tracemalloc.start()
    found = likeliest_classes(probabilities, frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (4000, 6000)
    assert peak < 24_000_000 + 80_000_000  # all probabilities would be 768 MB


def test_masks_are_read_back_unchanged() -> None:
    classes = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    content = encode_mask(classes)
    np.testing.assert_array_equal(decode_mask(content), classes)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (50, 40))
