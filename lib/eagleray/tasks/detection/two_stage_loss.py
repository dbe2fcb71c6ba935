"""The loss of a detector with two stages.

Source: Ren et al. 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks". The first stage has the binary cross-entropy of objectness, the second one the
cross-entropy of labels and background, and both have the smooth absolute differences of boxes.

The paper takes both over a random sample of an image: 256 anchors, of which up to a half show
objects, and 512 proposals, of which up to a quarter do. Here every anchor and proposal has the
weight that it has in the mean of such samples. So the loss is the expectation of the paper's; it
depends on the image alone, and is the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from eagleray.tasks.detection.anchor_loss import deltas_of, is_background
from eagleray.tasks.detection.assignment import assign_anchors, objects_of, pick

__all__ = ["sample_weights", "two_stage_losses"]

_ANCHORS, _ANCHORS_WITH_OBJECTS = 256, 128
_PROPOSALS, _PROPOSALS_WITH_OBJECTS = 512, 128
_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the differences from proposals, as in the paper
_LINEAR_FROM = 1 / 9  # difference from which the loss of boxes grows linearly


def two_stage_losses(
    outputs: Mapping[str, Tensor], targets: Tensor, *, is_ignored: Tensor | None = None
) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: `logits` (N, P, num_labels) and `background` (N, P), of probabilities whose sum is
            1, `proposals` (N, P, 4) as x1, y1, x2, y2 in pixels of the input, and `deltas`
            (N, P, 4), by which boxes differ from them; `objectness` (N, A), logits of the `anchors`
            (N, A, 4), and `anchor_deltas` (N, A, 4), by which what they propose differs from them.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.
        is_ignored: Pixels of the input in which the centre of a box without an object is neither
            right nor wrong, bool (N, H, W); None for no such pixels.

    Returns:
        float32 tensor (N,).
    """
    objects = objects_of(targets)
    return _first_stage(outputs, objects, is_ignored) + _second_stage(outputs, objects, is_ignored)


def _first_stage(
    outputs: Mapping[str, Tensor], objects: Tensor, is_ignored: Tensor | None
) -> Tensor:
    """Return the losses of the region proposals (N,)."""
    anchors = outputs["anchors"][0]
    assigned = assign_anchors(anchors, objects, min_overlap=0.7, max_background=0.3)
    is_object = assigned >= 0
    is_free = is_background(anchors, objects, assigned) & ~_centred_in(is_ignored, anchors)
    weights = sample_weights(is_object, is_free, _ANCHORS, _ANCHORS_WITH_OBJECTS)
    of_objectness = functional.binary_cross_entropy_with_logits(
        outputs["objectness"], is_object.to(weights.dtype), reduction="none"
    )
    true = _true_deltas(anchors, pick(objects, assigned), is_object)
    of_boxes = _box_losses(outputs["anchor_deltas"], true, is_object)
    return (weights * (of_objectness + of_boxes)).sum(dim=1)


def _second_stage(
    outputs: Mapping[str, Tensor], objects: Tensor, is_ignored: Tensor | None
) -> Tensor:
    """Return the losses of labels and boxes (N,)."""
    proposals = outputs["proposals"]
    assigned = assign_anchors(
        proposals, objects, min_overlap=0.5, max_background=0.5, serves_all=False
    )
    is_object = assigned >= 0
    is_free = is_background(proposals, objects, assigned) & ~_centred_in(is_ignored, proposals)
    weights = sample_weights(is_object, is_free, _PROPOSALS, _PROPOSALS_WITH_OBJECTS)
    wanted = pick(objects, assigned)
    of_label = outputs["logits"].gather(2, wanted[..., 4:5].long())[..., 0]
    of_labels = -functional.logsigmoid(torch.where(is_object, of_label, outputs["background"]))
    true = _true_deltas(proposals, wanted, is_object)
    scale = true.new_tensor(_DELTA_WEIGHTS)
    of_boxes = _box_losses(outputs["deltas"] * scale, true * scale, is_object)
    return (weights * (of_labels + of_boxes)).sum(dim=1)


def _centred_in(pixels: Tensor | None, boxes: Tensor) -> Tensor:
    """Return which boxes, (A, 4) or (N, A, 4), have their centre in pixels: bool (N, A) or ()."""
    if pixels is None:
        return boxes.new_zeros((), dtype=torch.bool)
    num_images, height, width = pixels.shape
    centres = ((boxes[..., :2] + boxes[..., 2:]) / 2).nan_to_num().expand(num_images, -1, 2)
    x, y = (
        centres[..., axis].floor().long().clamp(0, length - 1)
        for axis, length in ((0, width), (1, height))
    )
    return pixels[torch.arange(num_images, device=pixels.device)[:, None], y, x]


def sample_weights(is_object: Tensor, is_free: Tensor, size: int, max_objects: int) -> Tensor:
    """Return the expected weight of each place in the mean over a random sample, (N, A).

    A sample has as many places with objects as there are, up to a number, and is filled up with
    free ones; in both, each place is as likely as any other.

    Args:
        is_object: Which places show an object, bool (N, A).
        is_free: Which others show none; the rest is never drawn, bool (N, A).
        size: Largest number of places in a sample.
        max_objects: Largest number of places with objects in it.
    """
    num_objects, num_free = is_object.sum(dim=1), is_free.sum(dim=1)
    drawn = num_objects.clamp(max=max_objects)
    filled = torch.minimum(num_free, size - drawn)
    shares = [
        (part / whole.clamp(min=1))[:, None]
        for part, whole in ((drawn, num_objects), (filled, num_free))
    ]
    total = (drawn + filled).clamp(min=1)[:, None]
    return (is_object * shares[0] + is_free * shares[1]) / total


def _true_deltas(boxes: Tensor, wanted: Tensor, is_object: Tensor) -> Tensor:
    """Return how the objects (N, A, 6) differ from boxes, (A, 4) or (N, A, 4); 0 where is none."""
    ordinary = wanted.new_tensor([0.0, 0, 1, 1])
    has = is_object[..., None]
    deltas = deltas_of(
        torch.where(has, wanted[..., :4], ordinary), torch.where(has, boxes, ordinary)
    )
    return torch.where(has, deltas, 0.0)


def _box_losses(deltas: Tensor, true: Tensor, is_object: Tensor) -> Tensor:
    """Return the smooth absolute differences (N, A); 0 for what shows no object."""
    losses = functional.smooth_l1_loss(deltas, true, beta=_LINEAR_FROM, reduction="none")
    return losses.sum(dim=2) * is_object
