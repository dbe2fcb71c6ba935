"""Random augmentation of training images.

All random numbers of a step are drawn from the seed, the epoch and the step, for all workers
together: they do not depend on the number of workers, on threads, or on a resume.

    augmentation = StepAugmentation(spec, epoch, step, num_images)
    augmentation.apply(pixels, row, size)         one image, and where its pixels are
    augmentation.mix(images, targets, …)          a batch, on its device
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.imaging.geometry import Placement
from eagleray.training.custom import transform_image
from eagleray.training.loop.mosaic import Tile, draw_tiles
from eagleray.training.loop.pixel_cache import centre
from eagleray.training.loop.scales import scaled_sizes
from eagleray.training.spec import TrainSpec

__all__ = ["StepAugmentation", "needs_margin"]

Pixels = npt.NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""Edges x1, y1, x2, y2 of a part of an image, in pixels."""

_CROP_ASPECT = (3 / 4, 4 / 3)
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 3.3)
_NUM_MAGNITUDES = 31  # of RandAugment
_NUM_OPERATIONS = 2  # of RandAugment, per image


def needs_margin(spec: TrainSpec) -> bool:
    """Whether random crops need more of an image than the contract's own crop keeps."""
    return spec.random_resized_crop < 1


class StepAugmentation:
    """The augmentation of one step.

    Args:
        spec: Specification with the augmentation.
        epoch: Number of finished epochs.
        step: Number of the step within the epoch, from 0.
        num_images: Number of images of the step, over all workers.
    """

    def __init__(self, spec: TrainSpec, epoch: int, step: int, num_images: int) -> None:
        self.num_images = num_images
        self._spec = spec
        self._seed = (spec.seed, epoch, step)
        self._unit = np.random.default_rng(self._seed).random((num_images, 16))

    def apply(
        self, pixels: Pixels, row: int, size: tuple[int, int]
    ) -> tuple[Pixels, Placement, Window]:
        """Return an augmented image, where its pixels are, and the part that they cover.

        RandAugment and transforms of the user may move pixels without saying so.

        Args:
            pixels: uint8 array (h, w, C).
            row: Number of the image within the step.
            size: (height, width) of the result.
        """
        pixels, placement, window = self._move(pixels, row, size)
        return self._change_colors(pixels, row), placement, window

    def _move(
        self, pixels: Pixels, row: int, size: tuple[int, int]
    ) -> tuple[Pixels, Placement, Window]:
        spec, unit = self._spec, self._unit[row]
        if spec.random_resized_crop < 1:
            pixels, placement = _random_resized_crop(
                pixels, unit[0:4], spec.random_resized_crop, size
            )
        else:
            top, left = ((have - want) / 2 for have, want in zip(pixels.shape, size, strict=False))
            placement = Placement(shift_x=-round(left), shift_y=-round(top))
            pixels = centre(pixels, size)
        height, width = size
        x1, y1, x2, y2 = 0, 0, width, height
        if spec.random_translation:
            pixels, (down, right) = _translate(pixels, unit[4:6], spec.random_translation)
            placement = placement.then(Placement(shift_x=right, shift_y=down))
            x1, x2 = max(right, 0), width + min(right, 0)
            y1, y2 = max(down, 0), height + min(down, 0)
        if spec.horizontal_flip and unit[6] < 0.5:
            pixels = pixels[:, ::-1]
            placement = placement.then(Placement(scale_x=-1.0, shift_x=width))
            x1, x2 = width - x2, width - x1
        if spec.vertical_flip and unit[7] < 0.5:
            pixels = pixels[::-1]
            placement = placement.then(Placement(scale_y=-1.0, shift_y=height))
            y1, y2 = height - y2, height - y1
        return pixels, placement, (x1, y1, x2, y2)

    def _change_colors(self, pixels: Pixels, row: int) -> Pixels:
        spec, unit = self._spec, self._unit[row]
        if spec.color_jitter:
            pixels = _color_jitter(pixels, unit[8:11], spec.color_jitter)
        if spec.randaugment:
            pixels = _randaugment(pixels, row, self._seed, spec.randaugment)
        if spec.transform is not None:
            pixels = transform_image(spec.transform, pixels, (*self._seed, 3, row))
        if spec.random_erasing and unit[11] < spec.random_erasing:
            pixels = _erase(pixels, unit[12:16])
        return pixels

    def step_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Draw the size of all images of the step: (height, width), near that of the contract."""
        if not self._spec.multi_scale:
            return size
        sizes = scaled_sizes(size, self._spec.multi_scale)
        return sizes[np.random.default_rng((*self._seed, 6)).integers(len(sizes))]

    def mosaic_rows(self, row: int, num_images: int) -> tuple[int, ...]:
        """Draw the three other images of a mosaic.

        Args:
            row: Number of the image within the step.
            num_images: Number of images to draw from.

        Returns:
            Positions among the images; none if the image is no mosaic.
        """
        if not self._spec.mosaic:
            return ()
        rng = np.random.default_rng((*self._seed, 4, row))
        if rng.random() >= self._spec.mosaic:
            return ()
        return tuple(rng.integers(num_images, size=3).tolist())

    def mosaic_tiles(self, row: int, size: tuple[int, int]) -> tuple[Tile, ...]:
        """Draw the places of the four images of a mosaic.

        Args:
            row: Number of the image within the step.
            size: (height, width) of the mosaic.
        """
        return draw_tiles(np.random.default_rng((*self._seed, 5, row)).random(6), size)

    def mix(self, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Mix every image of a batch with its neighbour, if the specification says so.

        Mixup (Zhang et al. 2018) blends the images, CutMix (Yun et al. 2019) pastes a rectangle; if
        the specification has both, one of them is drawn for the step.

        Args:
            images: uint8 tensor (N, H, W, C), the full batch or a worker's share.
            others: Tensors (N, …) to mix in the same proportion: float targets, and attributes if
                there are any.
        """
        spec = self._spec
        if not (spec.mixup or spec.cutmix) or len(images) < 2:
            return images, *others
        rng = np.random.default_rng((*self._seed, 1))
        cuts = bool(spec.cutmix) and (not spec.mixup or rng.random() < 0.5)
        alpha = spec.cutmix if cuts else spec.mixup
        share = float(rng.beta(alpha, alpha))
        neighbours = images.roll(1, 0)
        if cuts:
            height, width = images.shape[1:3]
            top, left, tall, wide = _rectangle(rng.random(2), 1 - share, 1.0, (height, width))
            images = images.clone()
            images[:, top : top + tall, left : left + wide] = neighbours[
                :, top : top + tall, left : left + wide
            ]
            share = 1 - tall * wide / (height * width)
        else:
            images = images.float().lerp(neighbours.float(), 1 - share).round().to(torch.uint8)
        return images, *(other * share + other.roll(1, 0) * (1 - share) for other in others)


# --- geometry ---------------------------------------------------------------------------------


def _random_resized_crop(
    pixels: Pixels, unit: npt.NDArray[np.float64], min_area: float, size: tuple[int, int]
) -> tuple[Pixels, Placement]:
    """Crop a random area and aspect ratio, and resize it to `size` (Szegedy et al. 2015)."""
    from torchvision.transforms.v2 import functional

    height, width = pixels.shape[:2]
    area = height * width * (min_area + (1 - min_area) * unit[0])
    low, high = (math.log(ratio) for ratio in _CROP_ASPECT)
    aspect = math.exp(low + (high - low) * unit[1])
    wide = min(width, max(1, round(math.sqrt(area * aspect))))
    tall = min(height, max(1, round(math.sqrt(area / aspect))))
    top, left = int(unit[2] * (height - tall + 1)), int(unit[3] * (width - wide + 1))
    image = _as_tensor(pixels[top : top + tall, left : left + wide])
    scale_x, scale_y = size[1] / wide, size[0] / tall
    placement = Placement(scale_x, scale_y, -left * scale_x, -top * scale_y)
    return _as_pixels(functional.resize(image, list(size), antialias=True)), placement  # bilinear


def _translate(
    pixels: Pixels, unit: npt.NDArray[np.float64], fraction: float
) -> tuple[Pixels, tuple[int, int]]:
    """Translate by full pixels, down and to the right; uncovered pixels are black."""
    height, width = pixels.shape[:2]
    limit = round(fraction * max(height, width))
    down, right = (int(value * (2 * limit + 1)) - limit for value in unit)
    moved = np.zeros_like(pixels)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = pixels[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved, (down, right)


def _rectangle(
    place: npt.NDArray[np.float64], area: float, aspect: float, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a rectangle with a fraction of an image's area."""
    height, width = size
    tall = min(height, round(height * math.sqrt(area / aspect)))
    wide = min(width, round(width * math.sqrt(area * aspect)))
    return (
        int(place[0] * (height - tall + 1)),
        int(place[1] * (width - wide + 1)),
        tall,
        wide,
    )


def _erase(pixels: Pixels, unit: npt.NDArray[np.float64]) -> Pixels:
    """Fill a rectangle with gray (Zhong et al. 2020)."""
    area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * unit[0]
    low, high = (math.log(ratio) for ratio in _ERASED_ASPECT)
    aspect = math.exp(low + (high - low) * unit[1])
    top, left, tall, wide = _rectangle(unit[2:4], area, aspect, pixels.shape[:2])
    erased = pixels.copy()
    erased[top : top + tall, left : left + wide] = 127
    return erased


# --- colour -----------------------------------------------------------------------------------


def _color_jitter(pixels: Pixels, unit: npt.NDArray[np.float64], strength: float) -> Pixels:
    from torchvision.transforms.v2 import functional

    brightness, contrast, saturation = 1 + strength * (2 * unit - 1)
    image = functional.adjust_brightness(_as_tensor(pixels), float(brightness))
    image = functional.adjust_contrast(image, float(contrast))
    if pixels.shape[2] == 3:
        image = functional.adjust_saturation(image, float(saturation))
    return _as_pixels(image)


def _affine(**changes: Any) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms.v2 import functional

    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **changes}
    return lambda image: functional.affine(image, **arguments)


def _operation(name: str, level: float, sign: int, size: tuple[int, int]) -> Any:
    """Return an operation of RandAugment at a level from 0 to 1 (Cubuk et al. 2020)."""
    from torchvision.transforms.v2 import functional

    height, width = size
    factor = 1 + sign * 0.9 * level
    angle = math.degrees(math.atan(0.3 * level)) * sign
    operations: dict[str, Callable[[Tensor], Tensor]] = {
        "identity": lambda image: image,
        "shear_x": _affine(shear=[angle, 0.0]),
        "shear_y": _affine(shear=[0.0, angle]),
        "translate_x": _affine(translate=[round(sign * level * 150 / 331 * width), 0]),
        "translate_y": _affine(translate=[0, round(sign * level * 150 / 331 * height)]),
        "rotate": lambda image: functional.rotate(image, sign * 30 * level),
        "brightness": lambda image: functional.adjust_brightness(image, factor),
        "saturation": lambda image: (
            functional.adjust_saturation(image, factor) if len(image) == 3 else image
        ),
        "contrast": lambda image: functional.adjust_contrast(image, factor),
        "sharpness": lambda image: functional.adjust_sharpness(image, factor),
        "posterize": lambda image: functional.posterize(image, 8 - round(4 * level)),
        "solarize": lambda image: functional.solarize(image, 255 * (1 - level)),
        "autocontrast": functional.autocontrast,
        "equalize": functional.equalize,
    }
    return operations[name]


_OPERATION_NAMES = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness"),
    *("saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)


def _randaugment(pixels: Pixels, row: int, seed: tuple[int, int, int], magnitude: int) -> Pixels:
    rng = np.random.default_rng((*seed, 2, row))
    image = _as_tensor(pixels)
    for _ in range(_NUM_OPERATIONS):
        name, sign = (
            _OPERATION_NAMES[rng.integers(len(_OPERATION_NAMES))],
            1 if rng.random() < 0.5 else -1,
        )
        image = _operation(name, magnitude / (_NUM_MAGNITUDES - 1), sign, pixels.shape[:2])(image)
    return _as_pixels(image)


def _as_tensor(pixels: Pixels) -> Tensor:
    """Return pixels (H, W, C) as a tensor (C, H, W)."""
    return torch.from_numpy(pixels.copy(order="C")).permute(2, 0, 1)


def _as_pixels(image: Tensor) -> Pixels:
    pixels: Pixels = image.permute(1, 2, 0).numpy()
    return pixels
