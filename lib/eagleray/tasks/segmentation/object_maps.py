"""Maps of objects: the class of each pixel, and the number of the object that it belongs to.

In the network's input they are one int32 array (2, height, width): the index of the label, as in
`class_maps`, and the number of the object from 1, or 0 for a pixel of no object that is told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Placement
from eagleray.tasks.annotation import Annotation, parse_annotation
from eagleray.tasks.page import Drawing
from eagleray.tasks.segmentation.class_maps import (
    IGNORED,
    encode_mask,
    map_in_input,
    move_map,
    pixels_inside,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ObjectMaps",
    "join_object_maps",
    "label_indices",
    "move_object_map",
    "object_drawing",
    "object_map",
]

Numbers = npt.NDArray[np.int16]
Integers = npt.NDArray[np.int64]


def object_map(annotation: Annotation) -> Numbers:
    """Draw the number of each object, the later ones over the earlier ones.

    Args:
        annotation: The labelled objects; each has a mask of the image's size.

    Returns:
        int16 array (height, width): 1 for the first object, and 0 for no object.

    Raises:
        InputError: If an object has no such mask.
    """
    height, width = annotation.height, annotation.width
    flat = np.zeros(height * width, np.int16)  # column by column, as the runs are
    for number, one in enumerate(annotation.objects, start=1):
        flat[pixels_inside(one, height, width)] = number
    return np.ascontiguousarray(flat.reshape(width, height).T)


def object_drawing(text: str) -> Drawing:
    """Return what is drawn of the objects of an annotation: each in a colour, and void in none.

    Args:
        text: The annotation, in the form of `tasks.annotation`.
    """
    annotation = parse_annotation(text)
    is_void = np.array([False, *(one.kind == "void" for one in annotation.objects)])
    numbers = object_map(annotation)
    return Drawing(mask=encode_mask(np.where(is_void[numbers], 0, numbers).astype(np.uint16)))


def label_indices(annotation: Annotation, labels: Sequence[str]) -> Integers:
    """Return the index of the label of each number in an object map, int64 (1 + K,).

    It is 0 for no object, and `IGNORED` for crowds.

    Raises:
        InputError: If an object has a label that is not among `labels`.
    """
    index = {label: number for number, label in enumerate(labels)}
    found = [0]
    for one in annotation.objects:
        if one.label not in index and one.kind != "void":
            raise InputError(
                f"Label {one.label!r} is not one of the model's: {', '.join(labels)[:200]}."
            )
        found.append(IGNORED if one.crowd else index[one.label])
    return np.array(found)


class ObjectMaps:
    """The object maps of labelled images in a network's input, each drawn when it is read.

    Args:
        texts: The annotations of the images, in the form of `tasks.annotation`.
        labels: The labels, at most 255; the first one is that of pixels without an object.
        things: Those whose objects are told apart; pixels of others have the number 0.
        contract: The image contract of the input.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        things: Collection[str],
        contract: ImageContract,
    ) -> None:
        self._texts, self._labels, self._contract = texts, labels, contract
        self._is_thing = np.array([label in things for label in labels])

    def __getitem__(self, rows: int | npt.NDArray[np.int64]) -> Tensor:
        """Return the map of one image, int32 (2, H, W), or those of several (N, 2, H, W)."""
        import torch

        if isinstance(rows, np.ndarray):
            return torch.stack([self[int(row)] for row in rows])
        annotation = parse_annotation(self._texts[rows])
        labels = label_indices(annotation, self._labels)
        numbers = map_in_input(object_map(annotation), self._contract, beside=-1)
        classes = np.where(numbers < 0, IGNORED, labels[numbers])
        is_apart = self._is_thing[labels.clip(max=len(self._labels) - 1)] & (labels != IGNORED)
        apart = np.where((numbers > 0) & is_apart[numbers], numbers, 0)
        return torch.from_numpy(np.stack([classes, apart]).astype(np.int32))


# --- in training --------------------------------------------------------------------------------


def move_object_map(
    maps: Tensor, placement: Placement, window: tuple[int, int, int, int]
) -> Tensor:
    """Return the object map of one image (2, H, W) after its pixels were moved.

    Args:
        maps: int32 tensor (2, H, W).
        placement: Where the pixels are now.
        window: Edges x1, y1, x2, y2 of the part of the input that the image is seen in; all other
            pixels are ignored and belong to no object.
    """
    import torch

    classes, numbers = maps
    return torch.stack(
        [move_map(classes, placement, window), move_map(numbers, placement, window, beside=0)]
    )


def join_object_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return the object map of an image that was put together from several with windows apart."""
    import torch

    classes, numbers = maps[0]
    for other_classes, other_numbers in maps[1:]:
        is_known = other_classes != IGNORED
        after = torch.where(other_numbers > 0, other_numbers + numbers.max(), 0)
        classes = torch.where(is_known, other_classes, classes)
        numbers = torch.where(is_known, after, numbers)
    return torch.stack([classes, numbers])
