"""Networks that are built on the feature maps of a classifier, by a prefix of its name.

detector/resnet18    a detector on the feature maps of resnet18; so are fcos, retinanet and ssdlite
unet/resnet18        a segmentation network; so are deeplabv3, lraspp, fcn8s and fcn32s
panoptic/resnet18    a segmentation network that tells objects apart

register_composition(Composition("detector", build, contract="letterbox", size=416))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eagleray.core.extensions import Extensions

if TYPE_CHECKING:
    from torch import nn

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
        build: Returns the network with random weights, given the architectures of the network and
            of its backbone, and whether to run slow initialisers (`initialize`). Its part named
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


def _build_detector(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.detector import Detector
    from eagleray.models.feature_maps import build_on_last_maps

    return build_on_last_maps(Detector, 3, *architectures, initialize=initialize)


def _build_fcos(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.fcos import FCOS
    from eagleray.models.feature_maps import build_on_last_maps

    return build_on_last_maps(FCOS, 3, *architectures, initialize=initialize)


def _build_retinanet(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.feature_maps import build_on_last_maps
    from eagleray.models.retinanet import RetinaNet

    return build_on_last_maps(RetinaNet, 3, *architectures, initialize=initialize)


def _build_ssdlite(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.feature_maps import build_on_last_maps
    from eagleray.models.ssdlite import SSDLite

    return build_on_last_maps(SSDLite, 2, *architectures, initialize=initialize)


def _build_unet(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.segmenters import build_unet

    return build_unet(*architectures, initialize=initialize)


def _build_deeplabv3(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.dilated_segmenters import build_deeplabv3

    return build_deeplabv3(*architectures, initialize=initialize)


def _build_lraspp(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.dilated_segmenters import build_lraspp

    return build_lraspp(*architectures, initialize=initialize)


def _build_panoptic(*architectures: Any, initialize: bool) -> nn.Module:
    from eagleray.models.panoptic_deeplab import build_panoptic_deeplab

    return build_panoptic_deeplab(*architectures, initialize=initialize)


def _fcn(stride: int) -> Callable[..., nn.Module]:
    def build_network(*architectures: Any, initialize: bool) -> nn.Module:
        from eagleray.models.segmenters import build_fcn

        return build_fcn(*architectures, stride=stride, initialize=initialize)

    return build_network


for _prefix, _build, _size in (
    ("detector", _build_detector, 416),
    ("fcos", _build_fcos, 416),
    ("retinanet", _build_retinanet, 416),
    ("ssdlite", _build_ssdlite, 320),
    ("unet", _build_unet, 256),
    ("panoptic", _build_panoptic, 256),
    ("deeplabv3", _build_deeplabv3, 256),
    ("lraspp", _build_lraspp, 256),
    ("fcn8s", _fcn(8), 256),
    ("fcn32s", _fcn(32), 256),
):
    register_composition(Composition(_prefix, _build, contract="letterbox", size=_size))
