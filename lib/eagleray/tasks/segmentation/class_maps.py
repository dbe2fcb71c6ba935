"""Maps of classes: the index of a label for each pixel, as a uint8 array (height, width).

`IGNORED` stands for pixels that are neither right nor wrong: those beside the image, and crowds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement, frame_of, resized_size
from eagleray.tasks.annotation import Annotation, Mask, TrueObject, parse_annotation
from eagleray.tasks.run_lengths import inside_runs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IGNORED",
    "ClassMap",
    "ClassMaps",
    "class_map",
    "decode_mask",
    "decode_numbers",
    "encode_mask",
    "enlarged_strips",
    "frame_of_all",
    "join_maps",
    "likeliest_classes",
    "map_in_input",
    "mask_of",
    "move_map",
    "pixels_inside",
    "resize_map",
    "within_image",
]

ClassMap = npt.NDArray[np.uint8]
_Map = TypeVar("_Map", bound=npt.NDArray[Any])

IGNORED = 255

_MAX_STRIP_VALUES = 2**22  # of probabilities that are enlarged at a time


# --- from annotations ---------------------------------------------------------------------------


def class_map(annotation: Annotation, labels: Sequence[str], beside: int = 0) -> ClassMap:
    """Draw the masks of an image's objects, the later ones over the earlier ones.

    Args:
        annotation: The labelled objects; each has a mask of the image's size.
        labels: The labels, at most 255.
        beside: Value of pixels without an object: the first label, the background, or `IGNORED`.

    Raises:
        InputError: If an object has no such mask, or a label that is not among `labels`.
    """
    height, width = annotation.height, annotation.width
    flat = np.full(height * width, beside, np.uint8)  # column by column, as the runs are
    index = {label: number for number, label in enumerate(labels)}
    for one in annotation.objects:
        if one.label not in index and one.kind != "void":
            raise InputError(
                f"Label {one.label!r} is not one of the model's: {', '.join(labels)[:200]}."
            )
        flat[pixels_inside(one, height, width)] = IGNORED if one.crowd else index[one.label]
    return np.ascontiguousarray(flat.reshape(width, height).T)


def pixels_inside(one: TrueObject, height: int, width: int) -> npt.NDArray[Any]:
    """Return the pixels of an object's mask as what indexes an array, column by column.

    Args:
        one: The object.
        height: Height of its image in pixels.
        width: Width of its image in pixels.

    Raises:
        InputError: If it has no mask of this size.
    """
    return inside_runs(mask_of(one, height, width).counts, height, width)


def mask_of(one: TrueObject, height: int, width: int) -> Mask:
    """Return the mask of an object in an image of a size.

    Raises:
        InputError: If it has no mask of this size.
    """
    if one.mask is None:
        raise InputError(
            f"An object {one.label!r} at {one.x:g}, {one.y:g} has a box and no mask; "
            "segmentation learns from masks: add them, or train a detection model."
        )
    if one.mask.size != (height, width):
        raise InputError(
            f"The mask of an object {one.label!r} is of {one.mask.size[0]} x {one.mask.size[1]} "
            f"pixels, and its image of {height} x {width}; correct the annotation."
        )
    return one.mask


def map_in_input(whole: _Map, contract: ImageContract, beside: int = IGNORED) -> _Map:
    """Return a map (H, W) of an upright original as the network's input shows it.

    Args:
        whole: The map; each pixel of the input has the value of the nearest one.
        contract: The image contract of the input.
        beside: Value of the pixels beside the image.
    """
    height, width = whole.shape
    frame = frame_of(contract, width, height)
    rows, columns = resized_size(contract, width, height)
    down = _sources(contract.size[0], rows, frame.top, height)
    across = _sources(contract.size[1], columns, frame.left, width)
    return _take(whole, down, across, beside)


def _sources(side: int, resized: int, cut: int, original: int) -> npt.NDArray[np.int64]:
    """Return the pixel of the original for each of a side of the input; -1 beside the image."""
    places = np.arange(side) + cut
    nearest = ((places + 0.5) * (original / resized)).astype(np.int64)
    return np.where((places >= 0) & (places < resized), nearest.clip(0, original - 1), -1)


def _take(values: _Map, down: npt.NDArray[Any], across: npt.NDArray[Any], beside: int) -> _Map:
    """Return chosen rows and columns; those of -1 are beside the map."""
    taken: _Map = values[down.clip(0)[:, None], across.clip(0)[None, :]]
    taken[down < 0] = beside
    taken[:, across < 0] = beside
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


def move_map(
    values: Tensor,
    placement: Placement,
    window: tuple[int, int, int, int],
    beside: int = IGNORED,
) -> Tensor:
    """Return the map of one image (H, W) after its pixels were moved.

    Args:
        values: Tensor of whole numbers (H, W).
        placement: Where the pixels are now.
        window: Edges x1, y1, x2, y2 of the part of the input that the image is seen in.
        beside: Value of all other pixels.
    """
    import torch

    height, width = values.shape
    x1, y1, x2, y2 = window
    down = _moved_from(height, placement.scale_y, placement.shift_y, (y1, y2))
    across = _moved_from(width, placement.scale_x, placement.shift_x, (x1, x2))
    return torch.from_numpy(_take(values.numpy(), down, across, beside))


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (…, H, W) resized to a height and a width: each pixel has the nearest value."""
    import torch

    down, across = (
        torch.from_numpy(_sources(after, after, 0, before))
        for after, before in zip(size, values.shape[-2:], strict=True)
    )
    return values[..., down[:, None], across[None, :]]


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
    classes = np.empty((frame.height, frame.width), np.uint8)
    for strip, values in enlarged_strips(within_image(probabilities, frame), *classes.shape):
        classes[strip] = np.argmax(values, axis=0)
    return classes


def enlarged_strips(
    maps: npt.NDArray[np.float32], height: int, width: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Enlarge maps by bilinear interpolation between pixel centres, a strip of rows at a time.

    Args:
        maps: float32 array (K, h, w) of one map or more.
        height: Height of the enlarged maps in pixels.
        width: Width of the enlarged maps in pixels.

    Yields:
        Rows, and the values of the maps there, float32 (K, num_rows, width).
    """
    num_maps, rows, _ = maps.shape
    places = ((np.arange(height) + 0.5) * (rows / height) - 0.5).clip(0, rows - 1)
    above = places.astype(np.int64)
    below, shares = (above + 1).clip(max=rows - 1), (places - above).astype(np.float32)
    count = max(1, _MAX_STRIP_VALUES // (num_maps * width))
    for start in range(0, height, count):
        strip = slice(start, start + count)
        share = shares[None, strip, None]
        values = maps[:, above[strip]] * (1 - share) + maps[:, below[strip]] * share
        size = (width, values.shape[1])
        yield (
            strip,
            np.stack([cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in values]),
        )


def frame_of_all(frame: Frame, rows: int, columns: int) -> Frame:
    """Return the frame of a map that shows the whole image.

    Args:
        frame: The frame of the network's input.
        rows: Height of the map in pixels.
        columns: Width of the map in pixels.
    """
    scales = frame.width / columns, frame.height / rows
    return Frame(frame.width, frame.height, *scales)


def within_image(probabilities: npt.NDArray[np.float32], frame: Frame) -> npt.NDArray[np.float32]:
    """Return what lies inside of the image; what a crop has cut off repeats the edge.

    Args:
        probabilities: float32 array (C, h, w) of the network's input.
        frame: Maps places in the input to the original.
    """
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


def encode_mask(values: ClassMap | npt.NDArray[np.uint16]) -> bytes:
    """Return a map as a PNG of gray values, of 8 bits if none of them is above 255, else of 16.

    The values of a class map are indices of labels.
    """
    is_small = values.dtype == np.uint8 or values.max(initial=0) < 256
    _, encoded = cv2.imencode(".png", values.astype(np.uint8, copy=False) if is_small else values)
    return encoded.tobytes()


def decode_mask(content: bytes) -> ClassMap:
    """Return the class map of a PNG that `encode_mask` made."""
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return np.asarray(decoded, np.uint8)


def decode_numbers(content: bytes) -> npt.NDArray[Any]:
    """Return the gray values of a PNG of 8 or 16 bits (height, width)."""
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return np.asarray(decoded)
