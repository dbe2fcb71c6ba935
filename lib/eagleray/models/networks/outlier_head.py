"""The last layer of a network with outlier statistics: it returns one more number, the score.

The score is a part of the network, so that every engine computes it in the pass of the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError, PackageError
from eagleray.models.architectures import Architecture
from eagleray.models.building import find_head, replace_layer
from eagleray.models.networks.head import HeadWithAttributes
from eagleray.models.outliers import OutlierStatistics

__all__ = ["OutlierHead", "add_outlier_score", "find_linear_head", "residuals"]

Confidence = Callable[[Tensor], Tensor]
"""logits (N, num_outputs) -> how much a label stands out (N,)"""


class OutlierHead(nn.Module):
    """A head that returns logits, and behind them the outlier score.

    Args:
        head: The head of the classifier.
        statistics: What the score is computed from.
        confidence: That of the task.
    """

    mean: Tensor
    directions: Tensor
    weight: Tensor
    levels: Tensor

    def __init__(
        self, head: nn.Module, statistics: OutlierStatistics, confidence: Confidence
    ) -> None:
        super().__init__()
        self.head, self.confidence = head, confidence
        for name in ("mean", "directions", "weight", "levels"):
            self.register_buffer(name, torch.tensor(getattr(statistics, name)), persistent=False)

    def forward(self, features: Tensor, *attributes: Tensor) -> Tensor:
        """Map features (N, F), and attributes if the head takes any, to (N, num_outputs + 1)."""
        logits = self.head(features, *attributes).float()
        confidence = self.confidence(logits)
        residual = residuals(features, self.mean, self.directions)
        distance = self.weight * residual - confidence
        # A distance that is not a number is above all levels.
        score = 1 - (distance[:, None] <= self.levels).float().mean(dim=1, keepdim=True)
        return torch.cat([logits, score], dim=1)


@torch.fx.wrap
def residuals(features: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Return how far features (N, F) are from a subspace (N,), in float32 under autocast too."""
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return _residuals(features, mean, directions)
    with torch.autocast(device, enabled=False):
        return _residuals(features, mean, directions)


def _residuals(features: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    centered = features.float() - mean
    within = (centered @ directions).square().sum(dim=1)
    return (centered.square().sum(dim=1) - within).clamp(min=0).sqrt()


def find_linear_head(module: nn.Module, architecture: Architecture) -> tuple[str, nn.Module, int]:
    """Return the name of a classifier's head, the head, and the number of features that it takes.

    Raises:
        InputError: If the last layer is not a linear one.
    """
    path = find_head(module, architecture.num_outputs)
    head = module.get_submodule(path)
    linear = head.linear if isinstance(head, HeadWithAttributes) else head
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"The last layer of {architecture.name} is a convolution, which gets no vector of "
            "features; an outlier score needs another architecture, such as resnet18."
        )
    return path, head, linear.in_features


def add_outlier_score(
    module: nn.Module,
    architecture: Architecture,
    statistics: OutlierStatistics,
    confidence: Confidence,
) -> None:
    """Let a classifier return an outlier score behind its logits.

    Args:
        module: The network, whose head is replaced.
        architecture: Its architecture.
        statistics: What the score is computed from.
        confidence: That of the task.

    Raises:
        PackageError: If the statistics are of another number of features.
        InputError: If the last layer is not a linear one.
    """
    path, head, num_features = find_linear_head(module, architecture)
    if num_features != len(statistics.mean):
        raise PackageError(
            f"The outlier statistics are of {len(statistics.mean):,} features, and the last layer "
            f"of {architecture.name} gets {num_features:,}; make them again by "
            "`eagleray models outliers`."
        )
    replace_layer(module, path, OutlierHead(head, statistics, confidence))
