"""Random augmentation: it depends on the position in the run only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eagleray.training.loop.augment import _OPERATION_NAMES, StepAugmentation, _operation
from tests.support.training import small_spec

pytestmark = pytest.mark.numerical

SIZE = (32, 32)


def draws(count: int, epoch: int = 0, step: int = 0, **changes: Any) -> StepAugmentation:
    return StepAugmentation(small_spec("data", **changes), epoch, step, count)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_without_augmentation_an_image_is_unchanged() -> None:
    pixels = noise(*SIZE, 3)
    np.testing.assert_array_equal(draws(4).apply(pixels, 2, SIZE)[0], pixels)


@pytest.mark.parametrize(
    "changes",
    [
        {"random_translation": 0.2},
        {"random_resized_crop": 0.5},
        {"color_jitter": 0.5},
        {"randaugment": 9},
        {"random_erasing": 1.0},
        {"horizontal_flip": True},
        {"vertical_flip": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_depends_on_the_position_only(changes: dict[str, Any], channels: int) -> None:
    images = [noise(40, 40, channels, seed=seed) for seed in range(24)]
    spec = {**changes, "seed": 3}
    size = (32, 32) if "crop" in changes else (40, 40)

    def changed(epoch: int, step: int) -> np.ndarray:
        drawn = draws(24, epoch, step, **spec)
        return np.stack([drawn.apply(image, row, size)[0] for row, image in enumerate(images)])

    first = changed(1, 2)
    assert first.shape == (24, *size, channels)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(changed(1, 2), first)
    assert not np.array_equal(changed(1, 3), first)
    assert not np.array_equal(changed(2, 2), first)
    # A row's change does not depend on who else makes rows, nor on the order.
    alone = draws(24, 1, 2, **spec).apply(images[17], 17, size)[0]
    np.testing.assert_array_equal(alone, first[17])


def test_a_translation_is_at_most_its_fraction() -> None:
    pixels = np.zeros((32, 32, 1), np.uint8)
    pixels[16, 16] = 255
    drawn = draws(300, random_translation=0.125)
    places = [np.argwhere(drawn.apply(pixels, row, SIZE)[0][..., 0])[0] - 16 for row in range(300)]
    assert {int(value) for place in places for value in place} == set(range(-4, 5))


def test_a_horizontal_flip_flips_about_half_of_the_images() -> None:
    pixels = noise(8, 8, 3)
    drawn = draws(400, horizontal_flip=True)
    flipped = sum(
        np.array_equal(drawn.apply(pixels, row, (8, 8))[0], pixels[:, ::-1]) for row in range(400)
    )
    kept = sum(np.array_equal(drawn.apply(pixels, row, (8, 8))[0], pixels) for row in range(400))
    assert flipped + kept == 400
    assert 150 < flipped < 250


def test_a_random_resized_crop_has_all_areas_down_to_the_minimum() -> None:
    # A ramp along both axes: the spread of what is left tells how much was cut.
    ramp = np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 100, 1))
    drawn = draws(200, random_resized_crop=0.25)
    spreads = [np.ptp(drawn.apply(ramp, row, (50, 50))[0]) for row in range(200)]
    assert min(spreads) < 60  # the square root of a quarter, for squares
    assert max(spreads) > 85
    assert min(spreads) > 30


def test_random_erasing_has_its_probability() -> None:
    pixels = noise(*SIZE, 3)
    drawn = draws(400, random_erasing=0.25)
    erased = [drawn.apply(pixels, row, SIZE)[0] for row in range(400)]
    hit = [image for image in erased if not np.array_equal(image, pixels)]
    assert 60 < len(hit) < 140
    shares = [(image != pixels).any(axis=2).mean() for image in hit]
    assert max(shares) < 0.36


@pytest.mark.parametrize("name", _OPERATION_NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_of_randaugment_keeps_shape_and_type(name: str, channels: int) -> None:
    image = torch.from_numpy(noise(channels, 24, 30))
    for level in (0.0, 1.0):
        changed = _operation(name, level, -1, (24, 30))(image)
        assert changed.shape == image.shape
        assert changed.dtype == torch.uint8
    gentle = _operation(name, 0.0, 1, (24, 30))(image)
    if name not in ("autocontrast", "equalize", "solarize"):  # which move white at least
        assert (gentle.int() - image.int()).abs().max() <= 1


def test_mixup_blends_images_and_targets_in_the_same_proportion() -> None:
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    images[1] = images[3] = 200
    targets = torch.eye(4)
    mixed, shares = draws(4, mixup=1.0).mix(images, targets)
    share = float(shares[0, 0])
    assert 0 < share < 1
    assert torch.allclose(shares.sum(dim=1), torch.ones(4))
    assert mixed[1].float().mean() == pytest.approx(200 * share, abs=1)
    assert mixed[0].float().mean() == pytest.approx(200 * (1 - share), abs=1)


def test_cutmix_pastes_in_the_proportion_of_the_targets() -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[1] = 255
    for step in range(8):
        mixed, shares = draws(2, step=step, cutmix=1.0).mix(images, torch.eye(2))
        pasted = float((mixed[0] == 255).float().mean())
        assert float(shares[0, 1]) == pytest.approx(pasted, abs=1e-6)
    assert images[0].max() == 0  # the batch that came in is as it was
