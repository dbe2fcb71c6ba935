"""Faster R-CNN of torchvision, whose published weights find the labels of COCO.

The first stage proposes up to 1,000 boxes, the second one moves each of them for every label.
Of these boxes the 1,000 with the highest scores are returned, each as a candidate of one label.

All shapes are fixed: a proposal that torchvision would leave out stays, without a score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from eagleray.models.networks.anchors import decode, rows_of
from eagleray.models.networks.layers import softmax_logits
from eagleray.models.networks.published_layers import (
    FixedNormalization,
    LabelRows,
    build_torchvision,
    level_anchors,
    pad_images,
)
from eagleray.models.networks.suppression import (
    clip_boxes,
    pairwise_overlaps,
    take_boxes,
    unsuppressed,
)

__all__ = ["PublishedFasterRCNN"]

_CANDIDATES = 1000  # of an image, as many as a task compares
_SIDE = 7  # places of the features of a proposal, in each direction
_SAMPLES = 2  # of such a place, in each direction
_EPSILON = 1e-6  # octaves by which a box may be too small for its level
_PLACES = 14.0  # of a level along the side of a box that it suits, and up to twice as many
_ROUNDS = 32  # of the suppression: far more boxes than overlap one after the other
_DELTA_UNITS = (0.1, 0.1, 0.2, 0.2)  # of the outputs of the second stage
_SUPPRESSED = 1e4  # by which suppressed boxes rank lower, more than logits differ
_ABSENT = -20.0  # logit of a label that a candidate does not have
_MIN_SIDE = 1e-3  # of a proposal in pixels


class PublishedFasterRCNN(FixedNormalization):
    """A detector with two stages.

    Args:
        name: Name of the network.
        num_labels: Number of labels.
    """

    def __init__(self, name: str, num_labels: int) -> None:
        super().__init__()
        self._rows = LabelRows(num_labels)
        network = build_torchvision(name, self._rows.count).eval()
        self.backbone = network.backbone
        self.rpn = network.rpn
        self.roi_heads = network.roi_heads
        self._max_of_level: int = self.rpn.pre_nms_top_n()
        self._max_proposals: int = self.rpn.post_nms_top_n()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict in every proposal.

        Args:
            images: Normalised images (N, C, H, W).

        Returns:
            `boxes` (N, A, 4) as x1, y1, x2, y2 in pixels of the input, and `logits`
            (N, A, num_labels) of the probabilities of the softmax; each candidate has one label,
            and hardly any probability of the others.
        """
        padded = pad_images(images)
        maps = self.backbone(padded)
        levels = list(maps.values())
        size = (images.shape[2], images.shape[3])
        proposals, is_proposed = self._propose(padded, levels, size)
        pooled = self._pool(padded, maps, proposals)
        scores, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        shape = proposals.shape[:2]
        logits = self._rows.labels(softmax_logits(scores.float().reshape(*shape, -1)))
        logits = torch.where(is_proposed[..., None], logits, _ABSENT)
        moves = self._rows.labels(deltas.float().reshape(*shape, -1, 4).transpose(2, 3))
        return self._best(proposals, logits, moves, size)

    def _propose(
        self, padded: Tensor, levels: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return proposals (N, P, 4), best first, and which are torchvision's too, bool (N, P)."""
        anchors = level_anchors(self.rpn.anchor_generator, padded, levels)
        parts = []
        for logits, deltas, own in zip(*self.rpn.head(list(levels)), anchors, strict=True):
            objectness = rows_of(logits, 1).float()[..., 0]
            boxes = decode(rows_of(deltas, 4).float(), own)
            parts.append(self._best_of_level(objectness, boxes, size))
        ranks, boxes = (torch.cat(one, dim=1) for one in zip(*parts, strict=True))
        ranks, best = ranks.topk(min(self._max_proposals, ranks.shape[1]), dim=1)
        is_proposed = (ranks > -_SUPPRESSED / 2) & (ranks.sigmoid() >= self.rpn.score_thresh)
        return take_boxes(boxes, best), is_proposed

    def _best_of_level(
        self, objectness: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return what the best boxes of a level are ranked by (N, K), and these (N, K, 4)."""
        ranks, best = objectness.topk(min(self._max_of_level, objectness.shape[1]), dim=1)
        own = clip_boxes(take_boxes(boxes, best), size)
        stays = unsuppressed(pairwise_overlaps(own), self.rpn.nms_thresh, rounds=_ROUNDS)
        has_area = ((own[..., 2:] - own[..., :2]) >= _MIN_SIDE).all(dim=2)
        return torch.where(stays & has_area, ranks, ranks - _SUPPRESSED), own

    def _pool(self, padded: Tensor, maps: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        """Cut boxes (N, P, 4) out of the maps that suit their sizes, (N·P, F, 7, 7).

        Of maps of one stride, as MobileNet has, torchvision uses the first one. To keep shapes
        fixed, every box is cut out of every map, and one of the results is taken.
        """
        levels: dict[int, Tensor] = {}
        for name in self.roi_heads.box_roi_pool.featmap_names:
            if name in maps:
                stride = 2 ** round(math.log2(padded.shape[2] / maps[name].shape[2]))
                levels.setdefault(stride, maps[name].float())
        index = _suitable_level(boxes, _PLACES * min(levels), len(levels)).flatten()
        image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        numbers = image[:, None, None].expand(-1, boxes.shape[1], 1)
        regions = torch.cat([numbers, boxes.nan_to_num()], dim=2).flatten(0, 1)
        pooled = regions.new_zeros(())
        for place, (stride, features) in enumerate(levels.items()):
            own = roi_align(features, regions, _SIDE, 1 / stride, sampling_ratio=_SAMPLES)
            pooled = torch.where((index == place)[:, None, None, None], own, pooled)
        return pooled

    def _best(
        self, proposals: Tensor, logits: Tensor, moves: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Choose the candidates with the highest scores.

        Args:
            proposals: Boxes (N, P, 4).
            logits: Logits of labels (N, P, num_labels).
            moves: How boxes of each label differ from their proposals (N, P, 4, num_labels).
            size: Height and width of the input in pixels.
        """
        num_labels = logits.shape[2]
        flat = logits.flatten(1)
        chosen, best = flat.topk(min(_CANDIDATES, flat.shape[1]), dim=1)
        labels, places = best % num_labels, best // num_labels
        deltas = take_boxes(moves.transpose(2, 3).flatten(1, 2), best)
        boxes = decode(deltas * deltas.new_tensor(_DELTA_UNITS), take_boxes(proposals, places))
        own = functional.one_hot(labels, num_labels).bool()
        return {
            "boxes": clip_boxes(boxes, size),
            "logits": torch.where(own, chosen[..., None], _ABSENT),
        }


def _suitable_level(boxes: Tensor, side: float, count: int) -> Tensor:
    """Return the level of each box (N, P), int64: of twice the stride for twice the side.

    Args:
        boxes: Boxes (N, P, 4).
        side: Side from which boxes suit the first level; smaller ones have no other.
        count: Number of levels.
    """
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=2)
    octave = (area.sqrt() / side).clamp(min=1e-6).log2() + _EPSILON
    return octave.floor().clamp(0, count - 1).long()
