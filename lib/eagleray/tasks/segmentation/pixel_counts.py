"""Counts pixels by their true and predicted labels.

The observation of an image is its confusion matrix as shares: row i has, of the pixels whose true
label is i, the share that is predicted as each label. With the true numbers of pixels, which are
the encoded targets, it gives the counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eagleray.tasks.segmentation.class_maps import IGNORED, ClassMap

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["confusion_of", "confusions_in_batch", "count_labels", "shares_to_counts"]

Counts = npt.NDArray[np.int64]

_MAX_PIXELS = 2**22  # that are counted at a time


def count_labels(classes: ClassMap, num_labels: int) -> Counts:
    """Return the number of pixels of each label, int64 (num_labels,); ignored ones do not count."""
    counts = np.zeros(256, np.int64)
    flat = classes.ravel()
    for start in range(0, len(flat), _MAX_PIXELS):
        counts += np.bincount(flat[start : start + _MAX_PIXELS], minlength=256)
    return counts[:num_labels]


def confusion_of(true: ClassMap, predicted: ClassMap, num_labels: int) -> Counts:
    """Return the pixels of an image by true and predicted label, int64 (num_labels, num_labels)."""
    counts = np.zeros(num_labels**2, np.int64)
    flat, found = true.ravel(), predicted.ravel()
    for start in range(0, len(flat), _MAX_PIXELS):
        part = slice(start, start + _MAX_PIXELS)
        counted = flat[part] != IGNORED
        cells = flat[part][counted].astype(np.int64) * num_labels + found[part][counted]
        counts += np.bincount(cells, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def confusions_in_batch(true: Tensor, predicted: Tensor, num_labels: int) -> Tensor:
    """Return the pixels of images by true and predicted label.

    Args:
        true: Class maps, uint8 (N, H, W).
        predicted: Indices of the predicted labels, int64 (N, H, W).
        num_labels: Number of labels.

    Returns:
        int64 tensor (N, num_labels, num_labels).
    """
    import torch

    num_images = len(true)
    image = torch.arange(num_images, device=true.device)[:, None, None]
    cells = (image * num_labels + true.long()) * num_labels + predicted
    counts = torch.bincount(cells[true != IGNORED], minlength=num_images * num_labels**2)
    return counts.reshape(num_images, num_labels, num_labels)


def shares_to_counts(
    shares: npt.NDArray[np.floating], num_pixels: Counts
) -> npt.NDArray[np.float64]:
    """Return the confusion matrices of images from those of shares.

    Args:
        shares: Shares of each true label (N, C, C).
        num_pixels: True numbers of pixels (N, C).

    Returns:
        float64 array (N, C, C) of whole numbers.
    """
    return np.rint(shares.astype(np.float64) * num_pixels[:, :, None])
