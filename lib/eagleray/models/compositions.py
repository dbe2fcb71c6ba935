"""Networks that are built on the feature maps of a classifier, by a prefix of its name.

detector/resnet18    a detector on the feature maps of resnet18; so are fcos, retinanet,
                     ssdlite and fasterrcnn
unet/resnet18        a segmentation network; so are deeplabv3, lraspp, fcn8s and fcn32s
maskrcnn/resnet18    a detector that also predicts a mask of each object
panoptic/resnet18    a segmentation network that tells objects apart

register_composition(Composition("detector", build, contract="letterbox", size=416))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eagleray.core.extensions import Extensions

if TYPE_CHECKING:
    from torch import nn

    from eagleray.models.networks.backbone import Backbone

__all__ = [
    "Composition",
    "backbone_of",
    "composition_prefixes",
    "find_composition",
    "register_composition",
]


@dataclass(frozen=True, slots=True)
class Composition:
    """A network on the feature maps of a classifier.

    Attributes:
        prefix: What comes before the classifier's name and a slash.
        build: Returns the network with random weights, given the number of labels, its `Backbone`
            and whether to run the backbone's slow initialisers (`initialize`). Its part named
            `backbone` has the weights of the classifier under their names.
        contract: Name of the default image contract.
        size: Side of the images of the default contract in pixels.
    """

    prefix: str
    build: Callable[..., nn.Module]
    contract: str
    size: int


_COMPOSITIONS: Extensions[Composition] = Extensions("composition")


def register_composition(composition: Composition) -> None:
    """Make a composition known by its prefix."""
    _COMPOSITIONS.register(composition.prefix, composition)


def composition_prefixes() -> tuple[str, ...]:
    """Return the prefixes of all compositions."""
    return _COMPOSITIONS.names()


def find_composition(name: str) -> Composition | None:
    """Return the composition that an architecture's name begins with, if it begins with one."""
    prefix, slash, _ = name.partition("/")
    return _COMPOSITIONS.registered(prefix) if slash else None


def backbone_of(name: str) -> str | None:
    """Return the name of the classifier that a composed network is built on; None for others."""
    return name.partition("/")[2] if find_composition(name) is not None else None


def _on_maps(module: str, network: str, count: int | None = None) -> Callable[..., nn.Module]:
    """Return what builds a class of networks on so many of the deepest maps; None for all of them.

    The class is imported when it is needed: PyTorch takes seconds.
    """

    def build(num_labels: int, backbone: Backbone, *, initialize: bool) -> nn.Module:
        from eagleray.models.networks.feature_maps import build_on_maps

        kind = getattr(importlib.import_module(f"eagleray.models.networks.{module}"), network)
        made: nn.Module = build_on_maps(
            kind, num_labels, backbone, count=count, initialize=initialize
        )
        return made

    return build


def _built_by(module: str, function: str, **options: int) -> Callable[..., nn.Module]:
    """Return what builds a network by a function of its own, imported when it is needed."""

    def build(num_labels: int, backbone: Backbone, *, initialize: bool) -> nn.Module:
        own = getattr(importlib.import_module(f"eagleray.models.networks.{module}"), function)
        network: nn.Module = own(num_labels, backbone, initialize=initialize, **options)
        return network

    return build


for _prefix, _build, _size in (
    ("detector", _on_maps("detector", "Detector", 3), 416),
    ("fcos", _on_maps("fcos", "FCOS", 3), 416),
    ("retinanet", _on_maps("retinanet", "RetinaNet", 3), 416),
    ("fasterrcnn", _on_maps("faster_rcnn", "FasterRCNN", 4), 416),
    ("maskrcnn", _on_maps("mask_rcnn", "MaskRCNN", 4), 416),
    ("ssdlite", _on_maps("ssdlite", "SSDLite", 2), 320),
    ("unet", _on_maps("segmenters", "UNet"), 256),
    ("panoptic", _on_maps("panoptic_deeplab", "PanopticDeepLab"), 256),
    ("deeplabv3", _built_by("dilated_segmenters", "build_deeplabv3"), 256),
    ("lraspp", _built_by("dilated_segmenters", "build_lraspp"), 256),
    ("fcn8s", _built_by("segmenters", "build_fcn", stride=8), 256),
    ("fcn32s", _built_by("segmenters", "build_fcn", stride=32), 256),
):
    register_composition(Composition(_prefix, _build, contract="letterbox", size=_size))
