"""Objects as rows of numbers: the targets of a loss, and what a detector finds.

Targets of an image are rows of six numbers. The first row has the image's width and height, each
other row an object: `x1, y1, x2, y2, label, kind`, where `kind` is `OBJECT`, `CROWD` (its pixels
are neither right nor wrong) or 0 for a row that only fills the tensor.

Detections of an image are rows `x1, y1, x2, y2, score, label`, best first; rows that only fill the
tensor have the score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.geometry import Frame, Placement, frame_of
from eagleray.tasks.annotation import Annotation, Mask

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CROWD",
    "OBJECT",
    "ROW",
    "DetectedObject",
    "box_iou",
    "detections_in_original",
    "encode_annotation",
    "join_targets",
    "move_targets",
    "object_difference",
    "resize_targets",
    "select_objects",
    "stack_targets",
    "targets_in_input",
]

ROW = 6
OBJECT = 1
CROWD = 2

_MIN_SHARE = 0.3  # of an object's box, for it to be recognised
_MAX_CANDIDATES = 1000  # of one image, before boxes that overlap are removed


@dataclass(frozen=True, slots=True)
class DetectedObject:
    """An object that a model found in an image.

    Attributes:
        label: Its class.
        score: Probability of the class.
        x: Left edge of its box, in pixels of the upright original image.
        y: Upper edge of its box.
        width: Width of its box.
        height: Height of its box.
        mask: Its pixels; None for a model that finds boxes only.
    """

    label: str
    score: float
    x: float
    y: float
    width: float
    height: float
    mask: Mask | None = None


# --- targets ------------------------------------------------------------------------------------


def encode_annotation(annotation: Annotation, labels: Sequence[str]) -> list[list[float]]:
    """Return the target rows of an image, in pixels of the upright original.

    Raises:
        InputError: If an object has a label that is not among `labels`.
    """
    rows: list[list[float]] = [[annotation.width, annotation.height, 0, 0, 0, 0]]
    index = {label: number for number, label in enumerate(labels)}
    for one in annotation.objects:
        if one.label not in index and one.kind != "void":
            raise InputError(
                f"Label {one.label!r} is not one of the model's: {', '.join(labels)[:200]}."
            )
        kind = CROWD if one.crowd else OBJECT
        box = [one.x, one.y, one.x + one.width, one.y + one.height]
        rows.append([*box, index.get(one.label, 0), kind])
    return rows


def stack_targets(encoded: Sequence[Sequence[Sequence[float]] | Tensor]) -> Tensor:
    """Return the target rows of images as one float32 tensor (N, 1 + K, 6), filled with zeros.

    Rows may have more columns than six, the same number in all images.
    """
    import torch

    most = max((len(rows) for rows in encoded), default=1)
    columns = len(encoded[0][0]) if len(encoded) else ROW
    targets = torch.zeros(len(encoded), most, columns)
    for place, rows in enumerate(encoded):
        targets[place, : len(rows)] = torch.as_tensor(rows)
    return targets


def targets_in_input(targets: Tensor, contract: ImageContract) -> Tensor:
    """Return targets (N, 1 + K, 6) in pixels of the network's input instead of the original."""
    moved = targets.clone()
    for rows in moved:
        frame = frame_of(contract, int(rows[0, 0]), int(rows[0, 1]))
        rows[1:, 0:4:2] = rows[1:, 0:4:2] / frame.scale_x - frame.left
        rows[1:, 1:4:2] = rows[1:, 1:4:2] / frame.scale_y - frame.top
        rows[0, 0], rows[0, 1] = contract.size[1], contract.size[0]
    return moved


def move_targets(
    targets: Tensor, placement: Placement, window: tuple[int, int, int, int]
) -> Tensor:
    """Return the targets of one image (1 + K, 6) after its pixels were moved.

    Boxes are cut off at the edges of the window. An object of which little is left is neither right
    nor wrong, as a crowd; one that has left the window is gone.

    Args:
        targets: Targets in pixels of the input.
        placement: Where the pixels are now.
        window: Edges x1, y1, x2, y2 of the part of the input that the image is seen in.
    """
    import torch

    moved = targets.clone()
    boxes = moved[1:, :4]
    boxes[:, 0::2] = boxes[:, 0::2] * placement.scale_x + placement.shift_x
    boxes[:, 1::2] = boxes[:, 1::2] * placement.scale_y + placement.shift_y
    low, high = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    whole = (high - low).prod(dim=1)
    first, last = torch.tensor(window[:2]), torch.tensor(window[2:])
    low, high = low.clamp(first, last), high.clamp(first, last)
    share = (high - low).prod(dim=1) / whole.clamp(min=1e-9)
    boxes[:, :2], boxes[:, 2:] = low, high
    kind = moved[1:, 5]
    kind[(share < _MIN_SHARE) & (kind == OBJECT)] = CROWD
    kind[share <= 0] = 0
    return torch.cat([moved[:1], moved[1:][kind > 0]])


def resize_targets(targets: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Return the targets of one image (1 + K, 6) after it was resized.

    Args:
        targets: Targets in pixels of the input.
        before: (height, width) of the input before.
        after: (height, width) of it now.
    """
    height, width = after
    resized = targets.clone()
    resized[0, 0], resized[0, 1] = width, height
    resized[1:, 0:4:2] *= width / before[1]
    resized[1:, 1:4:2] *= height / before[0]
    return resized


def join_targets(targets: Sequence[Tensor]) -> Tensor:
    """Return the targets of an image that was put together from several (1 + K, 6)."""
    import torch

    return torch.cat([targets[0][:1], *(rows[1:] for rows in targets)])


# --- detections ---------------------------------------------------------------------------------


def select_objects(
    boxes: Tensor, scores: Tensor, *, max_objects: int, min_score: float, max_overlap: float
) -> Tensor:
    """Choose the objects of images among the candidates of a detector.

    Of candidates of one label that overlap, the one with the highest score stays (non-maximum
    suppression). Equal scores are ordered by the place of the candidate, so that a batch and a
    single image give the same objects.

    Args:
        boxes: Candidate boxes (N, A, 4) as x1, y1, x2, y2, in pixels.
        scores: Probabilities (N, A, num_labels).
        max_objects: Largest number of objects of an image.
        min_score: Lowest score of an object.
        max_overlap: Largest intersection over union of two objects of one label.

    Returns:
        float32 tensor (N, max_objects, 6) of detections; NaN for an image with outputs that are not
        finite.
    """
    chosen = boxes.new_zeros((len(boxes), max_objects, ROW))
    # A sum is finite if all its values are: one pass over the scores instead of three.
    sums = boxes.flatten(1).sum(dim=1) + scores.flatten(1).sum(dim=1)
    is_finite = sums.isfinite().tolist()
    for place, (own_boxes, own_scores) in enumerate(zip(boxes, scores, strict=True)):
        if not is_finite[place]:
            chosen[place] = float("nan")
            continue
        rows = _select(own_boxes, own_scores, max_objects, min_score, max_overlap)
        chosen[place, : len(rows)] = rows
    return chosen


def _select(
    boxes: Tensor, scores: Tensor, max_objects: int, min_score: float, max_overlap: float
) -> Tensor:
    """Return the detections of one image, best first, at most `max_objects`."""
    import torch

    num_labels = scores.shape[1]
    flat = scores.flatten()
    candidates = (flat >= min_score).nonzero().flatten()
    order = flat[candidates].argsort(descending=True, stable=True)[:_MAX_CANDIDATES]
    candidates = candidates[order]
    labels = candidates % num_labels
    own = boxes[candidates // num_labels]
    # Labels are moved apart, so that one call compares only boxes of the same label. In double
    # precision the shift leaves the boxes' differences as they are.
    extent = own.abs().max().double() * 2 + 1 if len(own) else 1.0
    apart = own.double() + (labels.double() * extent)[:, None]
    kept = _suppress(apart, flat[candidates].double(), max_objects, max_overlap)
    parts = [own[kept], flat[candidates][kept, None], labels[kept, None].to(own.dtype)]
    return torch.cat(parts, dim=1)


def _suppress(boxes: Tensor, scores: Tensor, max_objects: int, max_overlap: float) -> Tensor:
    """Return the places of the boxes that stay (M,), at most `max_objects`.

    Whether a box stays depends on better ones alone, so the best boxes are enough if enough of them
    stay. All of them would cost several times as much where most are doubtful.

    Args:
        boxes: Boxes (K, 4), best first.
        scores: Their scores (K,).
        max_objects: Largest number of boxes that stay.
        max_overlap: Largest intersection over union of two of them.
    """
    from torchvision.ops import nms

    count = 2 * max_objects
    while True:
        kept: Tensor = nms(boxes[:count], scores[:count], max_overlap)
        if len(kept) >= max_objects or count >= len(boxes):
            return kept[:max_objects]
        count *= 2


def detections_in_original(rows: npt.NDArray[np.float32], frame: Frame) -> npt.NDArray[np.float32]:
    """Return detections (M, 6) in pixels of the upright original image, cut off at its edges."""
    moved = rows.copy()
    found = rows[:, 4] > 0
    for axis, (scale, shift, side) in enumerate(
        ((frame.scale_x, frame.left, frame.width), (frame.scale_y, frame.top, frame.height))
    ):
        places = (rows[found, axis:4:2] + shift) * scale
        moved[found, axis:4:2] = places.clip(0, side)
    return moved


def box_iou(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the intersection over union of boxes (M, 4) and (K, 4) as an array (M, K)."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    overlap: npt.NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros_like(shared), where=union > 0
    )
    return overlap


def object_difference(rows: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return how far the detections of an image are from those expected, from 0 to 1.

    Each object is compared with the one of the other side that has its label and overlaps it most:
    it differs by 1 - IoU, or by the difference of the scores if that is larger, and by 1 if there
    is none. The result is the sum of these differences, weighted by the squares of the scores, over
    the sum of the scores of both sides. The largest difference would say little: of two boxes that
    overlap, rounding may choose the other, and doubtful objects come and go with it.

    Args:
        rows: Detections (M, 6).
        expected: Detections (M, 6).
    """
    if not (np.isfinite(rows).all() and np.isfinite(expected).all()):
        return float("nan")
    sides = [side[side[:, 4] > 0] for side in (rows, expected)]
    differences = [_differences(*pair) for pair in (sides, sides[::-1])]
    scores = np.concatenate([side[:, 4] for side in sides])
    if not len(scores):
        return 0.0
    return float((np.concatenate(differences) * scores**2).sum() / scores.sum())


def _differences(rows: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return how far each of some objects (M, 6) is from its counterpart among others (K, 6)."""
    if not len(rows) or not len(others):
        return np.ones(len(rows))
    overlap = box_iou(rows[:, :4], others[:, :4])
    overlap[rows[:, None, 5] != others[None, :, 5]] = 0
    nearest = overlap.argmax(axis=1)
    best = overlap[np.arange(len(rows)), nearest]
    of_scores = np.abs(rows[:, 4] - others[nearest, 4])
    return np.where(best > 0, np.maximum(1 - best, of_scores), 1.0)
