"""Masks of boxes are pasted as torchvision does up to a pixel, and encoded as COCO's tools do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, paste_masks_in_image

from eagleray.tasks.segmentation.pasting import PastedMask, encode_pasted, paste_mask


def in_image(pasted: PastedMask, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of the whole image."""
    whole = np.zeros((height, width), bool)
    rows, columns = pasted.pixels.shape
    whole[pasted.top : pasted.top + rows, pasted.left : pasted.left + columns] = pasted.pixels
    return whole


def sampled(mask: Tensor, box: Tensor, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return what PyTorch samples of a mask at the centres of an image's pixels."""
    low, sides = box[:2], box[2:] - box[:2]
    x = (torch.arange(width) + 0.5 - low[0]) / sides[0] * 2 - 1
    y = (torch.arange(height) + 0.5 - low[1]) / sides[1] * 2 - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2)
    values = functional.grid_sample(mask[None], grid[None], align_corners=False)
    return (values[0, 0] > 0.5).numpy()


def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor, int, int]:
    """Return a smooth mask, a box that may reach beyond its image, and the image's sides."""
    height, width = torch.randint(20, 200, (2,), generator=generator).tolist()
    centre = torch.rand(2, generator=generator) * torch.tensor([width, height])
    half = torch.rand(2, generator=generator) * 80 + 0.3
    small = torch.rand(1, 1, 7, 7, generator=generator)
    mask = functional.interpolate(small, size=28, mode="bilinear")[0]
    return mask, torch.cat([centre - half, centre + half]), height, width


@pytest.mark.parametrize("seed", range(5))
def test_pixels_are_sampled_at_their_centres_and_encoded_as_coco_does(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        mask, box, height, width = drawn(generator)
        pasted = paste_mask(mask[0].numpy(), box.numpy(), height, width)
        whole = in_image(pasted, height, width)
        assert (whole != sampled(mask, box, height, width)).sum() <= 1  # rounding at 0.5
        counts = coco.encode(np.asfortranarray(whole.view(np.uint8)))["counts"].decode()
        assert encode_pasted(pasted, height, width) == counts


def rounded(box: Tensor) -> Tensor:
    """Return the box that torchvision pastes a mask of 28 places into."""
    whole = expand_boxes(box[None], 30 / 28)[0].to(torch.int64)
    low, sides = whole[:2], whole[2:] - whole[:2] + 1
    margins = sides / 30
    return torch.cat([low + margins, low + sides - margins])


@pytest.mark.parametrize("seed", range(5))
def test_pixels_are_those_of_torchvision_but_for_its_rounding_of_boxes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        mask, box, height, width = drawn(generator)
        assert (rounded(box) - box).abs().max() <= 1.1  # a pixel, and its share of the margin
        expected = paste_masks_in_image(mask[None], box[None], (height, width))[0, 0] > 0.5
        pasted = paste_mask(mask[0].numpy(), rounded(box).numpy(), height, width)
        assert (in_image(pasted, height, width) != expected.numpy()).sum() <= 1


def test_a_box_beside_the_image_has_no_pixels() -> None:
    pasted = paste_mask(np.ones((28, 28), np.float32), np.array([50.0, 0, 60, 9]), 20, 30)
    assert not pasted.pixels.any()


def test_a_mask_of_the_whole_image_is_one_run() -> None:
    pasted = PastedMask(np.ones((4, 3), bool), 0, 0)
    rle = {"size": [4, 3], "counts": encode_pasted(pasted, 4, 3).encode()}
    assert coco.area(rle) == 12
