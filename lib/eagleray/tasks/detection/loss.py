"""The loss of a detector, by what its network returns beside `boxes` and `logits`.

| tensor | of | loss |
|---|---|---|
| `points` | networks without anchors | quality focal loss and generalised IoU loss |
| `points`, `centreness` | FCOS | focal loss, generalised IoU loss and cross-entropy of centreness |
| `anchors` | RetinaNet | focal loss, and differences from the anchors |
| `anchors`, `background` | SSD | softmax with hard negatives, and differences from the anchors |
| `anchors`, `proposals` | Faster R-CNN | objectness, softmax, and differences in both stages |
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.tasks.base import ImageLosses
from eagleray.tasks.detection.anchor_loss import focal_anchor_losses, multibox_losses
from eagleray.tasks.detection.fcos_loss import fcos_losses
from eagleray.tasks.detection.quality_loss import quality_focal_losses
from eagleray.tasks.detection.two_stage_loss import two_stage_losses

__all__ = ["detection_losses"]

_LOSSES: dict[str, ImageLosses] = {
    "centreness": fcos_losses,
    "proposals": two_stage_losses,
    "background": multibox_losses,
    "points": quality_focal_losses,
    "anchors": focal_anchor_losses,
}
"""The loss of networks that return a tensor of a name, what fewer networks return first."""


def detection_losses(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return the loss of each image.

    Args:
        outputs: `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, `logits`
            (N, A, num_labels), and what the loss needs beside them.
        targets: Targets (N, 1 + K, 6) in pixels of the input, as `tasks.objects` describes them.

    Returns:
        float32 tensor (N,).

    Raises:
        InputError: If the network returns neither points nor anchors.
    """
    for name, losses in _LOSSES.items():
        if name in outputs:
            return losses(outputs, targets)
    raise InputError(
        f"The network returns the tensors {', '.join(sorted(outputs))}, and the loss of detection "
        "needs `points` or `anchors` beside boxes and logits; return one of them, or name a --loss "
        "of your own."
    )
