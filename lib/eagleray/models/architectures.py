"""Builds networks by name: torchvision's classifiers, registered ones, and timm's by a prefix.

A class of an extension is named by its import path, as in `my_networks:Net`.

architecture_names()            every name
Architecture(name=…, …)         a frozen description, as a model package stores it
build(architecture)             the network with random weights
build_pretrained(name, …)       the network with published weights and a fitted head
register_architecture(name, …)  makes another network known
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

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
from eagleray.models.imported import import_network

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Architecture",
    "architecture_for",
    "architecture_names",
    "build",
    "build_on_meta",
    "build_pretrained",
    "check_fits",
    "default_contract",
    "drop_attributes",
    "find_head",
    "has_published",
    "imagenet_labels",
    "join_attributes",
    "register_architecture",
    "replace_head",
    "require_architecture",
]

TIMM_PREFIX = "timm/"
_MAX_NAME = 200
_MAX_NARROWED = 4000
_SMALL_PIXELS = 64 * 64

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

    @property
    def title(self) -> str:
        """The name for people, as in `resnet20 (pruned)`."""
        return f"{self.name} (pruned)" if self.channels else self.name

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
        from eagleray.models import classic

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

_SMALL = 64
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}
_VISION_TRANSFORMER_PREFIX = "vit_"


def _imported(path: str) -> Builder:
    network = import_network(path)
    return lambda architecture: network(architecture.num_outputs, architecture.in_channels)


def _torchvision_names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _timm() -> Any | None:
    if importlib.util.find_spec("timm") is None:
        return None
    import timm

    return timm


def architecture_names() -> list[str]:
    """Return all names, sorted; those of timm only if timm is installed."""
    names = [*_REGISTERED.names(), *_torchvision_names()]
    timm = _timm()
    if timm is not None:
        names += [TIMM_PREFIX + name for name in timm.list_models()]
    return sorted(names)


def _registered(name: str) -> _Registered | None:
    """Return what a name stands for that is not torchvision's or timm's.

    Raises:
        InputError: If it is an import path that is not a network of an extension.
        UnknownNameError: If it is an import path of an extension that has no such object.
    """
    if is_import_path(name):
        return _Registered(_imported(name), 224, "rgb")
    known = _REGISTERED.registered(name)
    if known is not None or name.startswith(TIMM_PREFIX) or name in _torchvision_names():
        return known
    return _REGISTERED.find(name)


def require_architecture(name: str) -> None:
    """Raise `UnknownNameError` with the nearest names if there is no such architecture."""
    if _registered(name) is not None or name in _torchvision_names():
        return
    if name.startswith(TIMM_PREFIX) and _timm() is None:
        raise InputError(
            f"Architecture {name!r} needs timm, which is not installed: pip install eagleray[timm]."
        )
    known = architecture_names()
    if name not in known:
        raise UnknownNameError(
            "architecture", name, known, hint="`eagleray models architectures` lists all."
        )


def build(architecture: Architecture, *, initialize: bool = True) -> nn.Module:
    """Build a network with random weights.

    Args:
        architecture: What to build.
        initialize: False skips slow initialisers, for weights that are loaded next.

    Raises:
        UnknownNameError: If there is no such architecture.
        InputError: If attributes cannot join its head.
        ValueError: If its layers cannot have the recorded channels.
    """
    module = _build_of_images(architecture, initialize=initialize)
    if architecture.num_attributes:
        module = join_attributes(module, architecture)
    if architecture.channels:
        from eagleray.models.channels import narrow

        narrow(module, architecture.channels)
    return module


def _build_of_images(architecture: Architecture, *, initialize: bool) -> nn.Module:
    name = architecture.name
    require_architecture(name)
    registered = _registered(name)
    if registered is not None:
        return registered.builder(architecture)
    if name.startswith(TIMM_PREFIX):
        timm = _timm()
        assert timm is not None
        return cast(
            "nn.Module",
            timm.create_model(
                name.removeprefix(TIMM_PREFIX),
                pretrained=False,
                num_classes=architecture.num_outputs,
                in_chans=architecture.in_channels,
            ),
        )
    import torchvision

    options: dict[str, Any] = {"num_classes": architecture.num_outputs}
    if name in _WITH_AUXILIARY_HEADS:
        # The auxiliary heads served training in 2014; batch normalisation made them unnecessary.
        options |= {
            "aux_logits": False,
            "init_weights": initialize,
            "transform_input": architecture.transform_input,
        }
    if name.startswith(_VISION_TRANSFORMER_PREFIX) and architecture.image_size is not None:
        options["image_size"] = architecture.image_size
    module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    _fit_input(module, architecture.in_channels)
    return module


def build_pretrained(
    name: str, *, weights: str = "DEFAULT", in_channels: int = 3, num_outputs: int | None = None
) -> tuple[nn.Module, Architecture]:
    """Build a network with published weights, and fit its input and head.

    A head of another length than the published one starts from random weights. A single input
    channel takes the sum over the colours; other counts repeat the mean over them.

    Args:
        name: A torchvision or timm architecture.
        weights: Name of torchvision's weights entry (`DEFAULT`, `IMAGENET1K_V1`, …).
        in_channels: Channels of the input tensor.
        num_outputs: Length of the output; None keeps the published head.

    Raises:
        UnknownNameError: If there is no such architecture or no such weights.
        InputError: If there are no published weights, or they cannot be downloaded.
    """
    require_architecture(name)
    if not has_published(name):
        raise InputError(
            f"There are no published weights for {name!r}: train it, or start from random ones."
        )
    if name.startswith(TIMM_PREFIX):
        return _pretrained_timm(name, in_channels, num_outputs)
    import torchvision

    entry = _weights_entry(name, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module: nn.Module = _fetch(
            name,
            entry.url,
            lambda: torchvision.models.get_model(name, weights=entry),
        )
    if name in _WITH_AUXILIARY_HEADS:
        _drop_auxiliary_heads(module)
    published = len(entry.meta["categories"])
    outputs = published if num_outputs is None else num_outputs
    if outputs != published:
        replace_head(module, published, outputs)
    transform_input = bool(getattr(module, "transform_input", False)) and in_channels == 3
    _fit_input(module, in_channels)
    return module, Architecture(
        name=name,
        in_channels=in_channels,
        num_outputs=outputs,
        transform_input=transform_input,
        image_size=_image_size(name, entry.transforms().crop_size[0]),
    )


def architecture_for(
    name: str, contract: ImageContract, num_outputs: int, num_attributes: int = 0
) -> Architecture:
    """Describe the network of a name for a contract's images, and attributes if there are any."""
    return Architecture(
        name=name,
        in_channels=contract.channels,
        num_outputs=num_outputs,
        image_size=_image_size(name, contract.size[0]),
        num_attributes=num_attributes,
    )


def has_published(name: str) -> bool:
    """Return whether there are published weights of an architecture."""
    return _registered(name) is None


def _image_size(name: str, side: int) -> int | None:
    return side if name.startswith(_VISION_TRANSFORMER_PREFIX) else None


def _weights_entry(name: str, weights: str) -> Any:
    """Return an entry of torchvision's weights of a network."""
    import torchvision

    entries = torchvision.models.get_model_weights(name)
    known = ["DEFAULT", *entries.__members__]
    if weights not in known:
        raise UnknownNameError(f"weights entry of {name}", weights, known)
    return entries[weights] if weights != "DEFAULT" else entries.DEFAULT


def _drop_auxiliary_heads(module: nn.Module) -> None:
    """Remove the auxiliary heads, which only training uses."""
    network = cast("Any", module)
    network.aux_logits = False
    for head in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, head):
            setattr(network, head, None)


def _pretrained_timm(
    name: str, in_channels: int, num_outputs: int | None
) -> tuple[nn.Module, Architecture]:
    timm = _timm()
    assert timm is not None
    head = {} if num_outputs is None else {"num_classes": num_outputs}
    module = _fetch(
        name,
        "the timm hub",
        lambda: timm.create_model(
            name.removeprefix(TIMM_PREFIX), pretrained=True, in_chans=in_channels, **head
        ),
    )
    return module, Architecture(
        name=name, in_channels=in_channels, num_outputs=cast("int", module.num_classes)
    )


def _fetch(name: str, source: str, build_with_weights: Any) -> nn.Module:
    """Run a builder that downloads weights; turn a failure into one sentence.

    Standard output is for a command's results, and torch's hub reports its downloads there.
    """
    import http.client

    import torch

    try:
        with contextlib.redirect_stdout(sys.stderr):
            module: nn.Module = build_with_weights()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise InputError(
            f"The published weights of {name!r} cannot be fetched from {source} "
            f"({type(error).__name__}: {error}); put the file into "
            f"{torch.hub.get_dir()}/checkpoints by hand, or start from random weights."
        ) from error
    return module


# --- fitting ---------------------------------------------------------------------------------


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def _fit_input(module: nn.Module, in_channels: int) -> None:
    """Give the first convolution another number of input channels, and keep its weights."""
    import torch
    from torch import nn

    path, first = next(
        (path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d)
    )
    if first.in_channels == in_channels:
        return
    if hasattr(module, "transform_input"):
        cast("Any", module).transform_input = False  # it indexes three channels
    fitted = nn.Conv2d(
        in_channels,
        first.out_channels,
        kernel_size=first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        dilation=first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        total = first.weight.sum(dim=1, keepdim=True)
        fitted.weight.copy_(total.expand_as(fitted.weight) / in_channels)
        if first.bias is not None and fitted.bias is not None:
            fitted.bias.copy_(first.bias)
    _replace(module, path, fitted)


def find_head(module: nn.Module, num_outputs: int) -> str:
    """Return the name of the last layer with `num_outputs` outputs.

    Raises:
        InputError: If there is none.
    """
    from torch import nn

    from eagleray.models.head import NetworkWithAttributes

    if isinstance(module, NetworkWithAttributes):
        return "head"
    found = ""
    for path, layer in module.named_modules():
        is_linear = isinstance(layer, nn.Linear) and layer.out_features == num_outputs
        is_convolution = isinstance(layer, nn.Conv2d) and layer.out_channels == num_outputs
        if is_linear or is_convolution:
            found = path
    if not found:
        raise InputError(
            f"{type(module).__name__} has no linear layer or convolution of {num_outputs} outputs, "
            "which its head must be."
        )
    return found


def replace_head(module: nn.Module, present: int, num_outputs: int) -> None:
    """Replace the last layer with `present` outputs by a new one."""
    from torch import nn

    from eagleray.models.head import HeadWithAttributes

    path = find_head(module, present)
    head = module.get_submodule(path)
    if isinstance(head, nn.Linear):
        _replace(module, path, _linear_like(head, num_outputs))
    elif isinstance(head, HeadWithAttributes):
        linear = _linear_like(head.linear, num_outputs)
        _replace(module, path, HeadWithAttributes(linear, head.attributes.in_features))
    else:
        assert isinstance(head, nn.Conv2d)  # SqueezeNet
        _replace(module, path, nn.Conv2d(head.in_channels, num_outputs, kernel_size=1))


def _linear_like(head: nn.Linear, num_outputs: int) -> nn.Linear:
    from torch import nn

    return nn.Linear(head.in_features, num_outputs, head.bias is not None)


def join_attributes(module: nn.Module, architecture: Architecture) -> nn.Module:
    """Add attributes to the head of a network of images, which keeps its weights.

    Args:
        module: Network of images alone; it becomes a part of the result.
        architecture: Architecture of the result.

    Raises:
        InputError: If the head is not a linear layer.
    """
    from torch import nn

    from eagleray.models.head import HeadWithAttributes, MovedHead, NetworkWithAttributes

    path = find_head(module, architecture.num_outputs)
    head = module.get_submodule(path)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"Attributes join a linear head, and {architecture.name} ends in a convolution; choose "
            "another architecture, or leave attributes out."
        )
    _replace(module, path, MovedHead())
    return NetworkWithAttributes(module, HeadWithAttributes(head, architecture.num_attributes))


def drop_attributes(module: nn.Module) -> nn.Module:
    """Remove attributes from a network, which keeps the linear part of its head.

    Args:
        module: Network of images and attributes; its backbone becomes the result.
    """
    from eagleray.models.head import NetworkWithAttributes

    assert isinstance(module, NetworkWithAttributes)
    _replace(module.backbone, module.place, module.head.linear)
    return module.backbone


# --- what a name implies ---------------------------------------------------------------------


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
    registered = _registered(name)
    if registered is not None:
        side = size or registered.size
        return named_contract(
            contract or _usual_contract(side), size=side, color=registered.color, formats=FORMATS
        )
    if name.startswith(TIMM_PREFIX):
        timm = _timm()
        assert timm is not None
        settings = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        if settings is None:
            side = size or 224
            return named_contract(contract or _usual_contract(side), size=side, formats=FORMATS)
        designed, interpolation = settings.input_size[-1], settings.interpolation
        resize = int(designed / settings.crop_pct)
        mean, std = settings.mean, settings.std
    else:
        preset = _weights_entry(name, weights).transforms()
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
    changes: dict[str, Any] = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    if contract.resampler == "pillow_bilinear" and interpolation in ("bicubic", "lanczos"):
        changes["resampler"] = f"pillow_{interpolation}"
    return ImageContract.model_validate({**contract.model_dump(), **changes})


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


def build_on_meta(architecture: Architecture) -> nn.Module:
    """Build a network on the meta device, which has shapes and takes hardly any memory."""
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build(architecture, initialize=False).eval()
        except (NotImplementedError, RuntimeError):  # some read values while they are built
            with _parameters_on_meta():
                return build(architecture, initialize=False).eval().to("meta")


def _parameters_on_meta() -> contextlib.AbstractContextManager[object]:
    """Create parameters on the meta device, and all other tensors with their values."""
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(
            self,
            function: Any,
            types: Any,
            args: Sequence[Any] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            options = dict(kwargs or {})
            if function is torch.empty and options.get("device") is None:
                options["device"] = "meta"
            return function(*args, **options)

    return EmptyOnMeta()


def check_fits(architecture: Architecture, height: int, width: int) -> None:
    """Try a forward pass on the meta device, to refuse sizes that a network cannot take.

    Small images are tried on the CPU: on the meta device a few operations have PyTorch import its
    compiler, which takes seconds.

    Raises:
        InputError: If the network fails on (2, in_channels, height, width), or has outputs of
            another shape than (2, num_outputs).
    """
    import torch

    is_small = height * width <= _SMALL_PIXELS
    device = "cpu" if is_small else "meta"
    inputs = [torch.zeros(2, architecture.in_channels, height, width, device=device)]
    if architecture.num_attributes:
        inputs.append(torch.zeros(2, architecture.num_attributes, device=device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if is_small:
                module = build(architecture, initialize=False).eval()
            else:
                module = build_on_meta(architecture)
            with torch.no_grad():
                outputs = module(*inputs)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise InputError(
                f"{architecture.name} cannot take images of {height} x {width} pixels "
                f"({str(error).splitlines()[0]}); choose another --image-size or architecture."
            ) from None
    expected = (2, architecture.num_outputs)
    if isinstance(outputs, torch.Tensor) and tuple(outputs.shape) != expected:
        raise InputError(
            f"{architecture.name} returns outputs of the shape {tuple(outputs.shape)} for two "
            f"images, not {expected}; a network returns one row of logits per image."
        )
