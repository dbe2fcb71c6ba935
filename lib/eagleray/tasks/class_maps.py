"""Maps of classes: the index of a label for each pixel, as a uint8 array (height, width).

`IGNORED` stands for pixels that are neither right nor wrong: those beside the image, and crowds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement, frame_of, resized_size
from eagleray.tasks.annotation import Annotation, TrueObject, parse_annotation
from eagleray.tasks.run_lengths import decode_runs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IGNORED",
    "ClassMap",
    "ClassMaps",
    "class_map",
    "decode_mask",
    "encode_mask",
    "join_maps",
    "likeliest_classes",
    "map_in_input",
    "move_map",
]

ClassMap = npt.NDArray[np.uint8]

IGNORED = 255

_MAX_STRIP_VALUES = 2**22  # of probabilities that are enlarged at a time


# --- from annotations ---------------------------------------------------------------------------


def class_map(annotation: Annotation, labels: Sequence[str]) -> ClassMap:
    """Draw the masks of an image's objects, the later ones over the earlier ones.

    Pixels without an object have the first label, the background.

    Args:
        annotation: The labelled objects; each has a mask of the image's size.
        labels: The labels, at most 255.

    Raises:
        InputError: If an object has no such mask, or a label that is not among `labels`.
    """
    height, width = annotation.height, annotation.width
    flat = np.zeros(height * width, np.uint8)  # column by column, as the runs are
    index = {label: number for number, label in enumerate(labels)}
    for one in annotation.objects:
        if one.label not in index:
            raise InputError(
                f"Label {one.label!r} is not one of the model's: {', '.join(labels)[:200]}."
            )
        runs = _runs_of(one, height, width)
        flat[_inside(runs)] = IGNORED if one.crowd else index[one.label]
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _inside(runs: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the pixels inside of a mask as what indexes a flat array, whichever is smaller."""
    lengths = runs[1::2]
    if lengths.sum() * 8 > runs.sum():
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    starts = (runs.cumsum() - runs)[1::2]
    first = np.repeat(starts - (lengths.cumsum() - lengths), lengths)
    return first + np.arange(len(first))


def _runs_of(one: TrueObject, height: int, width: int) -> npt.NDArray[np.int64]:
    """Return the lengths of an object's runs, outside and inside of its mask in turn."""
    if one.mask is None:
        raise InputError(
            f"An object {one.label!r} at {one.x:g}, {one.y:g} has a box and no mask; a semantic "
            "model learns from masks: add them, or train a detection model."
        )
    if one.mask.size != (height, width):
        raise InputError(
            f"The mask of an object {one.label!r} is of {one.mask.size[0]} x {one.mask.size[1]} "
            f"pixels, and its image of {height} x {width}; correct the annotation."
        )
    return decode_runs(one.mask.counts, height, width)


def map_in_input(whole: ClassMap, contract: ImageContract) -> ClassMap:
    """Return a class map (H, W) of an upright original as the network's input shows it.

    Each pixel has the class of the nearest one; pixels beside the image are ignored.
    """
    height, width = whole.shape
    frame = frame_of(contract, width, height)
    rows, columns = resized_size(contract, width, height)
    down = _sources(contract.size[0], rows, frame.top, height)
    across = _sources(contract.size[1], columns, frame.left, width)
    return _take(whole, down, across)


def _sources(side: int, resized: int, cut: int, original: int) -> npt.NDArray[np.int64]:
    """Return the pixel of the original for each of a side of the input; -1 beside the image."""
    places = np.arange(side) + cut
    nearest = ((places + 0.5) * (original / resized)).astype(np.int64)
    return np.where((places >= 0) & (places < resized), nearest.clip(0, original - 1), -1)


def _take(values: ClassMap, down: npt.NDArray[Any], across: npt.NDArray[Any]) -> ClassMap:
    """Return chosen rows and columns; those of -1 are ignored."""
    taken: ClassMap = values[down.clip(0)[:, None], across.clip(0)[None, :]]
    taken[down < 0] = IGNORED
    taken[:, across < 0] = IGNORED
    return taken


class ClassMaps:
    """The class maps of labelled images in a network's input, each drawn when it is read.

    Args:
        texts: The annotations of the images, in the form of `tasks.annotation`.
        labels: The labels, at most 255.
        contract: The image contract of the input.
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[str], contract: ImageContract
    ) -> None:
        self._texts, self._labels, self._contract = texts, labels, contract

    def __getitem__(self, rows: int | npt.NDArray[np.int64]) -> Tensor:
        """Return the map of one image, uint8 (H, W), or those of several (N, H, W)."""
        import torch

        if isinstance(rows, np.ndarray):
            return torch.stack([self[int(row)] for row in rows])
        whole = class_map(parse_annotation(self._texts[rows]), self._labels)
        return torch.from_numpy(map_in_input(whole, self._contract))


# --- in training --------------------------------------------------------------------------------


def move_map(classes: Tensor, placement: Placement, window: tuple[int, int, int, int]) -> Tensor:
    """Return the class map of one image (H, W) after its pixels were moved.

    Args:
        classes: uint8 tensor (H, W).
        placement: Where the pixels are now.
        window: Edges x1, y1, x2, y2 of the part of the input that the image is seen in; all other
            pixels are ignored.
    """
    import torch

    height, width = classes.shape
    x1, y1, x2, y2 = window
    down = _moved_from(height, placement.scale_y, placement.shift_y, (y1, y2))
    across = _moved_from(width, placement.scale_x, placement.shift_x, (x1, x2))
    return torch.from_numpy(_take(classes.numpy(), down, across))


def _moved_from(
    side: int, scale: float, shift: float, seen: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Return where each pixel of a side was before it was moved; -1 for what was outside."""
    places = np.arange(side)
    before = np.floor((places + 0.5 - shift) / scale).astype(np.int64)
    known = (before >= 0) & (before < side) & (places >= seen[0]) & (places < seen[1])
    return np.where(known, before, -1)


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return the class map of an image that was put together from several with windows apart."""
    import torch

    joined = maps[0]
    for other in maps[1:]:
        joined = torch.where(other == IGNORED, joined, other)
    return joined


# --- predictions --------------------------------------------------------------------------------


def likeliest_classes(probabilities: npt.NDArray[np.float32], frame: Frame) -> ClassMap:
    """Return the most likely class of every pixel of an upright original image.

    What lies beside the image is cut off, and the probabilities are enlarged by bilinear
    interpolation, a strip of rows at a time: an image of 24 megapixels takes a byte for each pixel.

    Args:
        probabilities: float32 array (C, h, w) of the network's input.
        frame: Maps places in the input to the original.

    Returns:
        uint8 array (height, width) of the original.
    """
    known = _of_image(probabilities, frame)
    num_labels, rows, _ = known.shape
    classes = np.empty((frame.height, frame.width), np.uint8)
    places = ((np.arange(frame.height) + 0.5) * (rows / frame.height) - 0.5).clip(0, rows - 1)
    above = places.astype(np.int64)
    below, shares = (above + 1).clip(max=rows - 1), (places - above).astype(np.float32)
    count = max(1, _MAX_STRIP_VALUES // (num_labels * frame.width))
    for start in range(0, frame.height, count):
        strip = slice(start, start + count)
        share = shares[None, strip, None]
        values = known[:, above[strip]] * (1 - share) + known[:, below[strip]] * share
        size = (frame.width, values.shape[1])
        wide = [cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in values]
        classes[strip] = np.argmax(np.stack(wide), axis=0)
    return classes


def _of_image(probabilities: npt.NDArray[np.float32], frame: Frame) -> npt.NDArray[np.float32]:
    """Cut off what lies beside the image; what a crop has cut off repeats the edge."""
    rows, columns = round(frame.height / frame.scale_y), round(frame.width / frame.scale_x)
    cuts, gaps = [], []
    for side, cut, wanted in zip(
        probabilities.shape[1:], (frame.top, frame.left), (rows, columns), strict=True
    ):
        cuts.append(slice(max(0, -cut), max(0, -cut) + wanted))
        gaps.append((max(0, cut), max(0, wanted - max(0, cut) - side)))
    known = probabilities[:, cuts[0], cuts[1]]
    if any(map(any, gaps)):
        known = np.pad(known, ((0, 0), *gaps), mode="edge")
    return known


def encode_mask(classes: ClassMap) -> bytes:
    """Return a class map as a PNG of gray values, which are indices of labels."""
    _, encoded = cv2.imencode(".png", classes)
    return encoded.tobytes()


def decode_mask(content: bytes) -> ClassMap:
    """Return the class map of a PNG that `encode_mask` made."""
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return np.asarray(decoded, np.uint8)
