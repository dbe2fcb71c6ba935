"""Takes feature maps out of a classifier, for networks that say where things are.

A network's feature maps are what its stages return, each half as large as the one before: the last
output of each size before the sides shrink again. They are found by a trial pass, and taken by
tracing the network with torch.fx, so that its weights keep their names.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from eagleray.core.errors import InputError
from eagleray.models.networks.backbone import Backbone, FeatureLevel
from eagleray.models.networks.dilation import dilate
from eagleray.models.tracing import describe_trace_fault

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_on_maps", "extract_feature_maps", "feature_levels"]

Network = TypeVar("Network", bound="nn.Module")

_TRIAL_SIDE = 128
_MIN_LEVELS = 3


def feature_levels(backbone: Backbone) -> tuple[FeatureLevel, ...]:
    """Return the feature maps of a classifier, the largest first.

    Raises:
        InputError: If it has no feature maps of three sizes, as vision transformers have not.
    """
    levels = _feature_levels(backbone)
    if len(levels) < _MIN_LEVELS:
        raise InputError(
            f"{backbone.name} cannot be a backbone: it has feature maps of {len(levels)} sizes, "
            f"and {_MIN_LEVELS} are needed; choose a convolutional network such as resnet18."
        )
    return levels


@functools.cache
def _feature_levels(backbone: Backbone) -> tuple[FeatureLevel, ...]:
    import torch

    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        module = backbone.build(initialize=False).eval()
        found: dict[int, FeatureLevel] = {}

        def record(layer: str, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or output.ndim != 4:
                return
            stride, rest = divmod(_TRIAL_SIDE, output.shape[2])
            if not rest and 1 < output.shape[2] == output.shape[3]:
                found[stride] = FeatureLevel(layer, output.shape[1], stride)

        hooks = [
            layer.register_forward_hook(lambda _, __, output, path=path: record(path, output))
            for path, layer in module.named_modules()
            if path
        ]
        with contextlib.suppress(RuntimeError, ValueError, AssertionError, TypeError):
            module(torch.zeros(1, backbone.in_channels, _TRIAL_SIDE, _TRIAL_SIDE))
        for hook in hooks:
            hook.remove()
    return tuple(found[stride] for stride in sorted(found))


def extract_feature_maps(
    backbone: Backbone,
    levels: Sequence[FeatureLevel],
    *,
    initialize: bool = True,
    max_stride: int | None = None,
) -> nn.Module:
    """Build the part of a network that some of its feature maps need.

    Args:
        backbone: The classifier.
        levels: Feature maps, of `feature_levels`.
        initialize: False skips slow initialisers, for weights that are loaded next.
        max_stride: Largest stride of a feature map, to which the network is dilated; None leaves it
            as it is.

    Returns:
        A module that maps images (N, C, H, W) to a dictionary of feature maps by their layers.

    Raises:
        InputError: If the network cannot be traced, or cannot be dilated.
    """
    module = backbone.build(initialize=initialize)
    if max_stride is not None:
        dilate(module, backbone, levels[-1], max_stride)
    names = {level.layer: level.layer for level in levels}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if backbone.is_of_timm:
                from timm.models import create_feature_extractor
            else:
                from torchvision.models.feature_extraction import create_feature_extractor
            return cast("nn.Module", create_feature_extractor(module, names))
    except Exception as error:  # tracing runs the network's own code with values that are none
        raise InputError(
            f"{backbone.name} cannot be a backbone: its layers cannot be taken apart "
            f"({describe_trace_fault(error)}); choose another one, such as resnet18."
        ) from error


def build_on_maps(
    network: Callable[[nn.Module, Sequence[FeatureLevel], int], Network],
    num_labels: int,
    backbone: Backbone,
    *,
    count: int | None = None,
    initialize: bool,
) -> Network:
    """Build a network on the deepest feature maps of a classifier, with random weights.

    Args:
        network: Makes the network of a backbone, its feature maps and the number of labels.
        num_labels: Number of labels.
        backbone: The classifier.
        count: Number of feature maps; None for all of them.
        initialize: False skips slow initialisers of the backbone.

    Raises:
        InputError: If the classifier cannot be a backbone.
    """
    levels = feature_levels(backbone)[-(count or 0) :]
    features = extract_feature_maps(backbone, levels, initialize=initialize)
    return network(features, levels, num_labels)
