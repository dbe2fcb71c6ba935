"""The loss of networks that tell objects apart: classes, centres of objects, and offsets to them.

It is that of Cheng et al. 2020 ("Panoptic-DeepLab"): the loss of semantic segmentation, 200 times
the mean squared error of the map of centres, and 0.01 times the mean distance of offsets. The map
of centres has a Gaussian at each object's centre of mass. Centres are computed from the maps of
objects after these were moved with the pixels, so an object that is cut off has the centre of what
is left. Each image has a loss of its own, so that it is the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eagleray.tasks.segmentation.class_maps import IGNORED

__all__ = ["CenterTargets", "center_losses", "draw_centers"]

_SIGMA = 3.0  # of the Gaussians, in pixels
_RADIUS = 9  # up to which they are drawn
_CENTERS, _OFFSETS = 200.0, 0.01  # weights of the losses

PixelLosses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class CenterTargets:
    """Where the centres of objects are, as seen from the pixels.

    Attributes:
        centers: 1 at the pixel of a centre and less around it, float32 (N, H, W).
        offsets: Pixels down and to the right to the centre of a pixel's object, 0 for pixels of
            none, float32 (N, 2, H, W).
    """

    centers: Tensor
    offsets: Tensor


def draw_centers(numbers: Tensor) -> CenterTargets:
    """Return the targets of the centres of mass of objects.

    Args:
        numbers: The number of the object of each pixel, 0 for none, integers (N, H, W).
    """
    num_images, height, width = numbers.shape
    device = numbers.device
    most = int(numbers.max()) + 1
    cells = numbers.long() + torch.arange(num_images, device=device)[:, None, None] * most
    down = torch.arange(height, device=device, dtype=torch.float64)[:, None].expand(height, width)
    across = torch.arange(width, device=device, dtype=torch.float64).expand(height, width)
    length = num_images * most
    counts = torch.bincount(cells.flatten(), minlength=length)
    means = [
        torch.bincount(cells.flatten(), places.expand_as(cells).flatten(), minlength=length)
        / counts.clamp(min=1)
        for places in (down, across)
    ]
    offsets = torch.stack(
        [mean[cells] - places for mean, places in zip(means, (down, across), strict=True)], dim=1
    )
    offsets = torch.where(numbers[:, None] > 0, offsets, 0).float()
    is_object = (counts > 0) & (torch.arange(length, device=device) % most > 0)
    found = is_object.nonzero().flatten()
    y, x = (mean[found].round().long() for mean in means)
    centers = _gaussians(found // most, y, x, (num_images, height, width))
    return CenterTargets(centers, offsets)


def _gaussians(image: Tensor, y: Tensor, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return a map (N, H, W) with a Gaussian at each of K places, the larger value where two meet.

    Args:
        image: Image of each place, int64 (K,).
        y: Row of each place, int64 (K,).
        x: Column of each place, int64 (K,).
        shape: Number of images, height and width.
    """
    _, height, width = shape
    near = torch.arange(-_RADIUS, _RADIUS + 1, device=image.device)
    bell = torch.exp(-(near.double() ** 2) / (2 * _SIGMA**2))
    values = (bell[:, None] * bell[None, :]).float()
    rows, columns = y[:, None] + near, x[:, None] + near
    is_inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    places = (
        image[:, None, None] * height + rows.clamp(0, height - 1)[:, :, None]
    ) * width + columns.clamp(0, width - 1)[:, None, :]
    drawn = torch.where(is_inside, values, 0)
    flat = torch.zeros(shape, device=image.device).flatten()
    return flat.scatter_reduce(0, places.flatten(), drawn.flatten(), "amax").reshape(shape)


def center_losses(
    outputs: Mapping[str, Tensor], targets: Tensor, pixel_losses: PixelLosses
) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: `labels` (N, C, H, W), `centers` (N, 1, H, W) and `offsets` (N, 2, H, W) of the
            network.
        targets: Object maps, int32 (N, 2, H, W); `IGNORED` pixels do not count.
        pixel_losses: The loss of semantic segmentation, of logits (N, C, H, W) and class maps.

    Returns:
        float32 tensor (N,).
    """
    classes, numbers = targets[:, 0], targets[:, 1]
    wanted = draw_centers(numbers)
    counted, apart = classes != IGNORED, numbers > 0
    squares = (outputs["centers"][:, 0] - wanted.centers) ** 2
    distances = (outputs["offsets"] - wanted.offsets).abs().sum(dim=1)
    return (
        pixel_losses(outputs["labels"], classes)
        + _CENTERS * _mean(squares, counted)
        + _OFFSETS * _mean(distances, apart)
    )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over the pixels of each image that count (N,); 0 without any."""
    return (values * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
