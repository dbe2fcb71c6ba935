"""Tensors of images with different numbers of objects."""

from __future__ import annotations

import torch

from eagleray.tasks.padding import join_padded


def test_images_with_fewer_objects_are_filled_up() -> None:
    joined = join_padded([torch.ones(2, 1, 3), torch.ones(1, 4, 3)])
    assert joined.shape == (3, 4, 3)
    assert joined.sum(dim=(1, 2)).tolist() == [3, 3, 12]
    assert torch.equal(join_padded([torch.ones(2), torch.ones(1)]), torch.ones(3))
