"""Builds networks from their descriptions, with random or published weights, and fits their ends.

build(architecture)             the network with random weights
build_pretrained(name, …)       the network with published weights and a fitted head
check_fits(architecture, …)     refuses image sizes that the network cannot take
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from eagleray.core.errors import InputError, PackageError
from eagleray.core.extensions import is_import_path
from eagleray.imaging import ImageContract
from eagleray.models.architectures import (
    TIMM_PREFIX,
    VISION_TRANSFORMER_PREFIX,
    Architecture,
    default_contract,
    find_registered,
    has_published,
    image_size_of,
    import_timm,
    require_architecture,
    weights_entry,
)
from eagleray.models.compositions import find_composition
from eagleray.models.networks.backbone import Backbone
from eagleray.models.published import find_published
from eagleray.models.published_files import require_published_file
from eagleray.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "build",
    "build_on_meta",
    "build_pretrained",
    "check_fits",
    "drop_attributes",
    "find_head",
    "join_attributes",
    "load_backbone",
    "make_backbone",
    "remove_head",
    "replace_head",
    "replace_layer",
    "task_of_network",
]

_SMALL_PIXELS = 64 * 64
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}
_AUXILIARY = "aux_classifier."  # weights that only served training


def build(architecture: Architecture, *, initialize: bool = True) -> nn.Module:
    """Build a network with random weights.

    Args:
        architecture: What to build.
        initialize: False skips slow initialisers, for weights that are loaded next.

    Raises:
        UnknownNameError: If there is no such architecture.
        InputError: If attributes cannot join its head.
        PackageError: If its layers cannot have the recorded channels.
    """
    module = _build_of_images(architecture, initialize=initialize)
    if architecture.removed_head:
        try:
            remove_head(module, architecture.removed_head)
        except AttributeError:
            raise PackageError(
                f"{architecture.name} has no layer {architecture.removed_head!r} to leave out."
            ) from None
    if architecture.num_attributes:
        module = join_attributes(module, architecture)
    if architecture.channels:
        from eagleray.models.networks.channels import narrow

        try:
            narrow(module, architecture.channels)
        except ValueError as error:
            raise PackageError(
                f"{architecture.name} cannot have the recorded channels: {error}."
            ) from None
    return module


def _build_of_images(architecture: Architecture, *, initialize: bool) -> nn.Module:
    name = architecture.name
    require_architecture(name)
    composition = find_composition(name)
    if composition is not None:
        backbone = make_backbone(name.partition("/")[2], architecture.in_channels)
        return composition.build(architecture.num_outputs, backbone, initialize=initialize)
    registered = find_registered(name)
    if registered is not None:
        return registered.builder(architecture)
    if name.startswith(TIMM_PREFIX):
        timm = import_timm()
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
    published = find_published(name)
    if published is not None:
        module = published.build(name, architecture.num_outputs)
        _fit_input(module, architecture.in_channels)
        return module
    import torchvision

    options: dict[str, Any] = {"num_classes": architecture.num_outputs}
    if name in _WITH_AUXILIARY_HEADS:
        # The auxiliary heads served training in 2014; batch normalisation made them unnecessary.
        options |= {
            "aux_logits": False,
            "init_weights": initialize,
            "transform_input": architecture.transform_input,
        }
    if name.startswith(VISION_TRANSFORMER_PREFIX) and architecture.image_size is not None:
        options["image_size"] = architecture.image_size
    module = cast("nn.Module", torchvision.models.get_model(name, weights=None, **options))
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
    if find_composition(name) is not None:
        return _pretrained_composition(name, weights, in_channels, num_outputs)
    if name.startswith(TIMM_PREFIX):
        return _pretrained_timm(name, in_channels, num_outputs)
    if find_published(name) is not None:
        return _pretrained_places(name, weights, in_channels, num_outputs)
    import torchvision

    entry = weights_entry(name, weights)
    require_published_file(entry.url)
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
        image_size=image_size_of(name, entry.transforms().crop_size[0]),
    )


def make_backbone(name: str, in_channels: int = 3) -> Backbone:
    """Return what a composed network is built on: a classifier of that name."""
    return Backbone(
        name,
        in_channels,
        is_of_timm=name.startswith(TIMM_PREFIX),
        build=functools.partial(build, Architecture(name=name, in_channels=in_channels)),
    )


def load_backbone(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the backbone of a composed network the weights of its classifier.

    Args:
        module: A network with a part named `backbone`.
        weights: Weights of the classifier by name; what the backbone lacks, such as its last layer,
            is left out.

    Raises:
        RuntimeError: If a weight is missing, or has another shape.
    """
    backbone = module.get_submodule("backbone")
    wanted = backbone.state_dict()
    backbone.load_state_dict({name: weights[name] for name in wanted if name in weights})


def _pretrained_composition(
    name: str, weights: str, in_channels: int, num_outputs: int | None
) -> tuple[nn.Module, Architecture]:
    """Build a composed network on a classifier with published weights."""
    architecture = Architecture(name=name, in_channels=in_channels, num_outputs=num_outputs or 1000)
    classifier, _ = build_pretrained(
        name.partition("/")[2], weights=weights, in_channels=in_channels
    )
    module = build(architecture)
    load_backbone(module, classifier.state_dict())
    return module, architecture


def _pretrained_places(
    name: str, weights: str, in_channels: int, num_outputs: int | None
) -> tuple[nn.Module, Architecture]:
    """Build a network of `published` with its weights."""
    network, entry = find_published(name), weights_entry(name, weights)
    require_published_file(entry.url)
    assert network is not None
    num_published = network.make_task(entry.meta["categories"]).num_outputs
    module = network.build(name, num_published)

    def load() -> nn.Module:
        state = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
        module.load_state_dict(
            {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
        )
        return module

    _fetch(name, entry.url, load)
    outputs = num_published if num_outputs is None else num_outputs
    if outputs != num_published:
        replace_head(module, num_published, outputs)
    _fit_input(module, in_channels)
    return module, Architecture(name=name, in_channels=in_channels, num_outputs=outputs)


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
    timm = import_timm()
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
            f"{torch.hub.get_dir()}/checkpoints by hand, or train from random weights."
        ) from error
    return module


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


def check_fits(
    architecture: Architecture,
    height: int,
    width: int,
    *,
    task: Task | None = None,
    loss: str = "",
) -> None:
    """Try a forward pass, to refuse sizes that a network cannot take, and networks of other tasks.

    Args:
        architecture: The network.
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        task: The task that the network is for; None for one with a row of outputs for each image.
        loss: Name of the loss that it is trained with.

    Raises:
        InputError: If the network fails on (2, in_channels, height, width), for which the message
            says for which size it is made; or if it has outputs of another shape, or others, than
            the task or the loss needs.
    """
    try:
        shape, names = _trial_outputs(architecture, height, width)
    except _FAILURES as error:
        fault = f"{architecture.name} cannot take images of {height} x {width} pixels"
        side = _designed_side(architecture)
        if side is None:  # only the cause can help
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{fault} ({cause}); choose another size or architecture.") from None
        raise InputError(
            f"{fault}; it is made for {side} x {side}. Choose that size, or another architecture."
        ) from None
    if task is not None:
        _require_kind(architecture.name, shape, names, task)
        needed = task.loss_outputs.get(loss)
        if needed is not None and needed not in names:
            raise InputError(
                f"The loss {loss} needs `{needed}` of the network, which {architecture.name} does "
                "not return; leave --loss out, or name a network that returns it, such as "
                f"{task.default_architecture}."
            )
    of_pixels = task is not None and task.predicts_pixels
    expected = (2, architecture.num_outputs, *((height, width) if of_pixels else ()))
    if shape is not None and shape != expected:
        each = "pixel" if of_pixels else "image"
        raise InputError(
            f"{architecture.name} returns outputs of the shape {shape} for two images, not "
            f"{expected}; a network returns one row of logits per {each}."
        )


_FAILURES = (RuntimeError, TypeError, ValueError, AssertionError)
"""What networks raise for images of a size that they cannot take."""


def task_of_network(task: Task, architecture: Architecture, contract: ImageContract) -> Task:
    """Return the task of a network, by the outputs of a forward pass; see `Task.for_network`.

    A network that cannot take the images leaves the task as it is: `check_fits` refuses it.

    Raises:
        InputError: If the network cannot be built.
    """
    if not task.follows_network:
        return task
    try:
        outputs = _trial(architecture, *contract.size)
    except _FAILURES:
        return task
    named = outputs if isinstance(outputs, Mapping) else {}
    return task.for_network({name: tuple(one.shape[1:]) for name, one in named.items()}, contract)


def _require_kind(
    name: str, shape: tuple[int, ...] | None, names: Collection[str], task: Task
) -> None:
    """Refuse a network that returns something else than a task needs.

    Args:
        name: Name of the network.
        shape: Shape of its output; None if it returns several tensors.
        names: Names of these tensors.
        task: The task.
    """
    if task.output_names is None:
        return
    of_pixels = shape is not None and len(shape) > 2
    wanted = sorted(task.network_outputs) if task.output_names else []
    fits = bool(wanted) == bool(names) and set(names) >= set(wanted)
    if fits and of_pixels == task.predicts_pixels:
        return
    prefix, slash, _ = task.default_architecture.partition("/")
    is_classifier = shape is not None and not of_pixels
    other = f"{prefix}/{name}" if slash and is_classifier else task.default_architecture
    raise InputError(
        f"{name} returns {_returned(sorted(names), of_pixels)}, and {task.as_model} needs "
        f"{_returned(wanted, task.predicts_pixels)}; name another network, such as {other}."
    )


def _returned(names: Sequence[str], of_pixels: bool) -> str:
    if names:
        return f"the tensors {', '.join(names)}"
    return "logits of every pixel" if of_pixels else "one row of logits for each image"


def _trial_outputs(
    architecture: Architecture, height: int, width: int
) -> tuple[tuple[int, ...] | None, set[str]]:
    """Return the shape of a network's output for two images, or the names of several outputs."""
    outputs = _trial(architecture, height, width)
    if isinstance(outputs, Mapping):
        return None, set(outputs)
    return tuple(outputs.shape), set()


def _trial(architecture: Architecture, height: int, width: int) -> Tensor | Mapping[str, Tensor]:
    """Return the outputs of a network for two images.

    Small images are tried on the CPU: on the meta device, which takes no memory, a few operations
    have PyTorch import its compiler, which takes seconds.
    """
    import torch

    is_small = height * width <= _SMALL_PIXELS
    device = "cpu" if is_small else "meta"
    inputs = [torch.zeros(2, architecture.in_channels, height, width, device=device)]
    if architecture.num_attributes:
        inputs.append(torch.zeros(2, architecture.num_attributes, device=device))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if is_small:
            module = build(architecture, initialize=False).eval()
        else:
            module = build_on_meta(architecture)
        outputs: Tensor | Mapping[str, Tensor] = module(*inputs)
    return outputs


def _designed_side(architecture: Architecture) -> int | None:
    """Return the side in pixels that a network is made for.

    Returns:
        None for a network of an extension, which does not say, and for one that fails with that
        size too.
    """
    if is_import_path(architecture.name):
        return None
    side = default_contract(architecture.name).size[0]
    sized = architecture.model_copy(update={"image_size": image_size_of(architecture.name, side)})
    try:
        _trial_outputs(sized, side, side)
    except _FAILURES:
        return None
    return side


# --- input and head --------------------------------------------------------------------------


def replace_layer(module: nn.Module, path: str, new: nn.Module) -> None:
    """Replace the layer of a name."""
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
    replace_layer(module, path, fitted)


def find_head(module: nn.Module, num_outputs: int) -> str:
    """Return the name of the last layer with `num_outputs` outputs.

    Raises:
        InputError: If there is none.
    """
    from torch import nn

    from eagleray.models.networks.head import NetworkWithAttributes
    from eagleray.models.networks.published_layers import LabelConvolution

    if isinstance(module, NetworkWithAttributes):
        return "head"
    found = ""
    for path, layer in module.named_modules():
        if isinstance(layer, LabelConvolution) and layer.num_labels == num_outputs:
            return str(path)
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

    from eagleray.models.networks.head import HeadWithAttributes
    from eagleray.models.networks.published_layers import LabelConvolution

    path = find_head(module, present)
    head = module.get_submodule(path)
    if isinstance(head, nn.Linear):
        replace_layer(module, path, _linear_like(head, num_outputs))
    elif isinstance(head, HeadWithAttributes):
        linear = _linear_like(head.linear, num_outputs)
        replace_layer(module, path, HeadWithAttributes(linear, head.attributes.in_features))
    elif isinstance(head, LabelConvolution):
        replace_layer(module, path, head.with_labels(num_outputs))
    else:
        assert isinstance(head, nn.Conv2d)  # of SqueezeNet, and of networks that say where
        sides, padding = (cast("tuple[int, int]", one) for one in (head.kernel_size, head.padding))
        layer = nn.Conv2d(head.in_channels, num_outputs, sides, padding=padding)
        replace_layer(module, path, layer)


def remove_head(module: nn.Module, path: str) -> None:
    """Replace a layer by one that passes its inputs on, which are the network's features.

    Raises:
        AttributeError: If there is no such layer.
    """
    from torch import nn

    module.get_submodule(path)
    replace_layer(module, path, nn.Identity())


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

    from eagleray.models.networks.head import HeadWithAttributes, MovedHead, NetworkWithAttributes

    path = find_head(module, architecture.num_outputs)
    head = module.get_submodule(path)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"Attributes join a linear head, and {architecture.name} ends in a convolution; choose "
            "another architecture, or leave attributes out."
        )
    replace_layer(module, path, MovedHead())
    return NetworkWithAttributes(module, HeadWithAttributes(head, architecture.num_attributes))


def drop_attributes(module: nn.Module) -> nn.Module:
    """Remove attributes from a network, which keeps the linear part of its head.

    Args:
        module: Network of images and attributes; its backbone becomes the result.
    """
    from eagleray.models.networks.head import NetworkWithAttributes

    assert isinstance(module, NetworkWithAttributes)
    replace_layer(module.backbone, module.place, module.head.linear)
    return module.backbone
