"""Dilates a classifier, so that its deepest feature maps are as large as earlier ones.

What would halve the sides beyond a stride no longer does, and the convolutions behind it look at
places as far apart as before (Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image
Segmentation"). The weights stay as they are.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.models.networks.backbone import Backbone, FeatureLevel

__all__ = ["dilate"]

_TRIAL_SIDE = 128


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a layer.

    Attributes:
        layer: Name of the layer.
        stride: Its new stride; None for a pooling layer, which is left out.
        dilation: Its new dilation.
    """

    layer: str
    stride: int | None
    dilation: int


def dilate(module: nn.Module, backbone: Backbone, deepest: FeatureLevel, stride: int) -> None:
    """Change a classifier in place, so that none of its feature maps has a larger stride.

    Args:
        module: The classifier.
        backbone: What built it.
        deepest: The deepest of its feature maps.
        stride: Largest stride of a feature map, a power of two.

    Raises:
        InputError: If its layers cannot be dilated, such as convolutions of 2 x 2.
    """
    for change in _changes(backbone, deepest, stride):
        _apply(module.get_submodule(change.layer), change)


@functools.cache
def _changes(backbone: Backbone, deepest: FeatureLevel, stride: int) -> tuple[_Change, ...]:
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        module = backbone.build(initialize=False).eval()
        passes = _trial_pass(module, backbone.in_channels)
        changes = tuple(filter(None, (_change(one, stride) for one in passes)))
        for change in changes:
            _apply(module.get_submodule(change.layer), change)
        sides = [
            one.after
            for one in _trial_pass(module, backbone.in_channels)
            if one.path == deepest.layer
        ]
    if not sides or sides[-1] != min(stride, deepest.stride):
        raise InputError(
            f"{backbone.name} cannot be dilated to feature maps of the stride {stride}; choose "
            f"another backbone such as resnet18, or unet/{backbone.name}."
        )
    return changes


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a layer did in a trial pass: its input and its output have these strides."""

    path: str
    layer: nn.Module
    before: float
    after: float


def _trial_pass(module: nn.Module, in_channels: int) -> list[_Pass]:
    passes: list[_Pass] = []

    def record(path: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        maps = [one for one in (*inputs[:1], output) if isinstance(one, Tensor) and one.ndim == 4]
        if len(maps) == 2:
            before, after = (_TRIAL_SIDE / one.shape[2] for one in maps)
            passes.append(_Pass(path, layer, before, after))

    hooks = [
        layer.register_forward_hook(functools.partial(record, path))
        for path, layer in module.named_modules()
        if path
    ]
    with contextlib.suppress(RuntimeError, ValueError, AssertionError, TypeError):
        module(torch.zeros(1, in_channels, _TRIAL_SIDE, _TRIAL_SIDE))
    for hook in hooks:
        hook.remove()
    return passes


def _change(one: _Pass, stride: int) -> _Change | None:
    """Return what becomes of a layer, if anything does."""
    is_global = one.before == _TRIAL_SIDE  # a layer on what global pooling returns
    if is_global or max(one.before, one.after) <= stride:
        return None
    if isinstance(one.layer, nn.Conv2d):
        kept = min(one.after, stride) / min(one.before, stride)
        return _Change(one.path, int(kept), int(max(1, one.before / stride)))
    is_pooling = isinstance(one.layer, (nn.MaxPool2d, nn.AvgPool2d))
    return _Change(one.path, None, 1) if is_pooling and one.after == 2 * one.before else None


def _apply(layer: Any, change: _Change) -> None:
    if change.stride is None:
        layer.kernel_size, layer.stride, layer.padding = 1, 1, 0
        return
    layer.stride = (change.stride, change.stride)
    layer.dilation = tuple(one * change.dilation for one in layer.dilation)
    if not isinstance(layer.padding, str):
        layer.padding = tuple(one * change.dilation for one in layer.padding)
