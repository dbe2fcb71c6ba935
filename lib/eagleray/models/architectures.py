"""Architectures by name: torchvision's networks, registered ones, and timm's by a prefix.

Networks that say where things are have a prefix too, as in `detector/resnet18`, or are those of
torchvision with published weights (`published`).

A class of an extension is named by its import path, as in `my_networks:Net`. `building` makes
networks of what is described here.

architecture_names()            every name
Architecture(name=…, …)         a frozen description, as a model package stores it
default_contract(name, …)       the image contract that goes with the name
register_architecture(name, …)  makes another network known
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.extensions import Extensions, is_import_path
from eagleray.core.limits import MAX_LABELS
from eagleray.imaging import FORMATS, ImageContract, named_contract
from eagleray.imaging.contract import Color
from eagleray.models.compositions import backbone_of, composition_prefixes, find_composition
from eagleray.models.imported import import_network
from eagleray.models.published import find_published, published_names

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "TIMM_PREFIX",
    "VISION_TRANSFORMER_PREFIX",
    "Architecture",
    "architecture_for",
    "architecture_names",
    "default_contract",
    "find_registered",
    "has_published",
    "image_size_of",
    "imagenet_labels",
    "import_timm",
    "register_architecture",
    "require_architecture",
    "weights_entry",
]

TIMM_PREFIX = "timm/"
VISION_TRANSFORMER_PREFIX = "vit_"
_MAX_NAME = 200
_MAX_NARROWED = 4000
_SMALL = 64

Width = Annotated[int, Field(ge=1, lt=2**31)]
"""Number of channels of a layer."""


class Architecture(BaseModel):
    """What is needed to build a network, as a package stores it.

    Attributes:
        name: Name of the architecture, one of `architecture_names`, or an import path.
        in_channels: Number of channels of the input tensor.
        num_outputs: Length of the output vector.
        transform_input: Inception v3 and GoogLeNet only: re-normalise inside the network, as their
            published weights expect.
        image_size: Side of the input in pixels; only for torchvision's vision transformers, whose
            weights depend on it.
        num_attributes: Length of an image's attribute vector; 0 for a network of images alone.
        channels: Input and output channels of each layer that pruning has made narrower, by name.
        removed_head: Name of the last layer if it is left out: the outputs are what it would get,
            the features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=_MAX_NAME)]
    in_channels: Annotated[int, Field(ge=1, le=4096)] = 3
    num_outputs: Annotated[int, Field(ge=1, le=MAX_LABELS)] = 1000
    transform_input: bool = False
    image_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    num_attributes: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    channels: Annotated[
        dict[Annotated[str, Field(max_length=_MAX_NAME)], tuple[Width, Width]],
        Field(max_length=_MAX_NARROWED),
    ] = Field(default_factory=dict)
    removed_head: Annotated[str, Field(max_length=_MAX_NAME)] = ""

    @property
    def title(self) -> str:
        """The name for people, as in `resnet20 (pruned, without head)`."""
        notes = ["pruned"] * bool(self.channels) + ["without head"] * bool(self.removed_head)
        return f"{self.name} ({', '.join(notes)})" if notes else self.name

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_serializer(mode="wrap")
    def _without_what_older_packages_lack(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Omit a later field without a value, so that older packages keep their digests."""
        fields: dict[str, Any] = serialize(self)
        if fields.get("num_attributes") == 0:
            del fields["num_attributes"]
        if not fields.get("channels"):
            fields.pop("channels", None)
        if not fields.get("removed_head"):
            fields.pop("removed_head", None)
        return fields


Builder = Callable[[Architecture], "nn.Module"]


@dataclass(frozen=True, slots=True)
class _Registered:
    builder: Builder
    size: int
    color: Color


_REGISTERED: Extensions[_Registered] = Extensions("architecture")


def register_architecture(
    name: str, builder: Builder, *, size: int = 224, color: Color = "rgb"
) -> None:
    """Make a network known by a name.

    Args:
        name: Name of the architecture.
        builder: Returns the network with random weights. It maps normalised images
            (N, in_channels, H, W) to `num_outputs` outputs, of which the last linear layer or
            convolution is the head, or to several named tensors.
        size: Side in pixels of the images of the default contract.
        color: Colour of the images of the default contract.
    """
    _REGISTERED.register(name, _Registered(builder, size, color))


def _classic(network: str, **options: int) -> Builder:
    def build_network(architecture: Architecture) -> nn.Module:
        from eagleray.models.networks import classic

        module: nn.Module = getattr(classic, network)(
            num_classes=architecture.num_outputs, in_channels=architecture.in_channels, **options
        )
        return module

    return build_network


register_architecture("lenet5", _classic("LeNet5"), size=32, color="gray")
register_architecture("zfnet", _classic("ZFNet"))
register_architecture("resnet20", _classic("SmallResNet", num_blocks=3), size=32)
register_architecture("resnet20_x2", _classic("SmallResNet", num_blocks=3, width=32), size=32)
register_architecture("resnet56", _classic("SmallResNet", num_blocks=9), size=32)


def _imported(path: str) -> Builder:
    network = import_network(path)
    return lambda architecture: network(architecture.num_outputs, architecture.in_channels)


def _torchvision_names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return [*names, *published_names()]


def import_timm() -> Any | None:
    """Import timm; return None if it is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    import timm

    return timm


def architecture_names() -> list[str]:
    """Return all names, sorted; those of timm only if timm is installed."""
    names = [*_REGISTERED.names(), *_torchvision_names()]
    timm = import_timm()
    if timm is not None:
        names += [TIMM_PREFIX + name for name in timm.list_models()]
    return sorted(names)


def find_registered(name: str) -> _Registered | None:
    """Return what a name stands for that is not torchvision's or timm's.

    Raises:
        InputError: If it is an import path that is not a network of an extension.
        UnknownNameError: If it is an import path of an extension that has no such object.
    """
    if find_composition(name) is not None:
        return None
    if is_import_path(name):
        return _Registered(_imported(name), 224, "rgb")
    known = _REGISTERED.registered(name)
    if known is not None or name.startswith(TIMM_PREFIX) or name in _torchvision_names():
        return known
    return _REGISTERED.find(name)


def require_architecture(name: str) -> None:
    """Raise `UnknownNameError` with the nearest names if there is no such architecture."""
    prefix = name.removesuffix("/")
    if prefix in composition_prefixes():
        raise InputError(
            f"Architecture {name!r} is built on a classifier, which comes behind a slash: write "
            f"{prefix}/resnet18, or name another one."
        )
    backbone = backbone_of(name)
    if backbone is not None:
        if find_composition(backbone) is not None:
            raise InputError(
                f"Architecture {name!r} is built on a classifier, and {backbone} is none; write "
                f"{name.partition('/')[0]}/{backbone_of(backbone)}."
            )
        require_architecture(backbone)
        return
    if find_registered(name) is not None or name in _torchvision_names():
        return
    if name.startswith(TIMM_PREFIX) and import_timm() is None:
        raise InputError(
            f"Architecture {name!r} needs timm, which is not installed: pip install eagleray[timm]."
        )
    known = architecture_names()
    if name not in known:
        raise UnknownNameError(
            "architecture", name, known, hint="`eagleray models architectures` lists all."
        )


def architecture_for(
    name: str, contract: ImageContract, num_outputs: int, num_attributes: int = 0
) -> Architecture:
    """Describe the network of a name for a contract's images, and attributes if there are any."""
    return Architecture(
        name=name,
        in_channels=contract.channels,
        num_outputs=num_outputs,
        image_size=image_size_of(name, contract.size[0]),
        num_attributes=num_attributes,
    )


def has_published(name: str) -> bool:
    """Return whether there are published weights of an architecture."""
    return find_registered(backbone_of(name) or name) is None


def image_size_of(name: str, side: int) -> int | None:
    """Return the side in pixels that a description needs; None if the weights are of any size."""
    return side if name.startswith(VISION_TRANSFORMER_PREFIX) else None


def weights_entry(name: str, weights: str) -> Any:
    """Return an entry of torchvision's weights of a network.

    Raises:
        UnknownNameError: If it has no such weights.
    """
    import torchvision

    entries = torchvision.models.get_model_weights(name)
    known = ["DEFAULT", *entries.__members__]
    if weights not in known:
        raise UnknownNameError(f"weights entry of {name}", weights, known)
    return entries[weights] if weights != "DEFAULT" else entries.DEFAULT


def default_contract(
    name: str,
    contract: str | None = None,
    *,
    size: int | None = None,
    weights: str = "DEFAULT",
) -> ImageContract:
    """Return the image contract of an architecture's published weights, for all image formats.

    Args:
        name: Name of the architecture.
        contract: A named contract; None takes `torchvision-reference`, and `whole-image` for sizes
            up to 64 pixels, where a crop costs more than it helps.
        size: Side in pixels; None for the one that the architecture was designed for.
        weights: Name of the weights entry whose statistics, filter and sizes are used.
    """
    require_architecture(name)
    composition = find_composition(name)
    if composition is not None:
        of_backbone = default_contract(name.partition("/")[2], weights=weights)
        named = named_contract(
            contract or composition.contract,
            size=size or composition.size,
            color=of_backbone.color,
            formats=FORMATS,
        )
        return _with_statistics(named, of_backbone.mean, of_backbone.std)
    published = find_published(name)
    if published is not None:
        weights_entry(name, weights)
        named = named_contract(
            contract or published.contract, size=size or published.size, formats=FORMATS
        )
        return _with_statistics(named, published.mean, published.std)
    registered = find_registered(name)
    if registered is not None:
        side = size or registered.size
        return named_contract(
            contract or _usual_contract(side), size=side, color=registered.color, formats=FORMATS
        )
    if name.startswith(TIMM_PREFIX):
        timm = import_timm()
        assert timm is not None
        settings = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        if settings is None:
            side = size or 224
            return named_contract(contract or _usual_contract(side), size=side, formats=FORMATS)
        designed, interpolation = settings.input_size[-1], settings.interpolation
        resize = int(designed / settings.crop_pct)
        mean, std = settings.mean, settings.std
    else:
        preset = weights_entry(name, weights).transforms()
        designed, interpolation = preset.crop_size[0], preset.interpolation.value
        resize = preset.resize_size[0]
        mean, std = preset.mean, preset.std
    side = size or designed
    named = named_contract(
        contract or _usual_contract(side),
        size=side,
        resize=resize if side == designed else None,
        formats=FORMATS,
    )
    return _as_evaluated(named, interpolation, mean, std)


def _usual_contract(size: int) -> str:
    return "whole-image" if size <= _SMALL else "torchvision-reference"


def _as_evaluated(
    contract: ImageContract, interpolation: str, mean: Sequence[float], std: Sequence[float]
) -> ImageContract:
    """Give a contract the statistics of the weights, and the filter where it is exact."""
    fitted = _with_statistics(contract, mean, std)
    if contract.resampler == "pillow_bilinear" and interpolation in ("bicubic", "lanczos"):
        resampler = {"resampler": f"pillow_{interpolation}"}
        return ImageContract.model_validate({**fitted.model_dump(), **resampler})
    return fitted


def _with_statistics(
    contract: ImageContract, mean: Sequence[float], std: Sequence[float]
) -> ImageContract:
    statistics = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    return ImageContract.model_validate({**contract.model_dump(), **statistics})


def imagenet_labels() -> list[str]:
    """Return the 1,000 ImageNet class names in the order of torchvision's weights.

    Names that stand for two classes (crane, maillot) get a number, so that labels are unique.
    """
    import torchvision

    names: list[str] = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels
