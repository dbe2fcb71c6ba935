"""Transforms and losses of a user's own, named in a specification by their import paths.

    transform: my_transforms:augment    a uint8 image tensor (C, H, W) to one of the same shape
    loss: my_losses:Tversky             logits (N, K) and targets to a loss for each image (N,);
                                        logits of pixels (N, K, H, W) for semantic segmentation

A class is constructed without arguments, and its instance is called. The modules are extensions;
see `core.extensions`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eagleray.core.errors import InputError, UserError
from eagleray.core.extensions import is_import_path, load_object
from eagleray.data.encoding import targets_for_loss
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import ImageContract
from eagleray.tasks import Task
from eagleray.tasks.base import ImageLosses
from eagleray.training.spec import TrainSpec

__all__ = ["image_losses", "require_custom_objects", "transform_image"]

Pixels = npt.NDArray[np.uint8]

_RANDOM = frozenset(
    (
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
        *("bernoulli", "bernoulli_", "multinomial", "normal", "normal_", "poisson", "random_"),
        *("uniform_", "cauchy_", "exponential_", "geometric_", "log_normal_", "_sample_dirichlet"),
    )
)
"""The functions of PyTorch that take a generator."""


class _SeededDraws(TorchFunctionMode):
    """Draws the random numbers of this thread's calls of PyTorch from a seed.

    Transforms draw from PyTorch's global generator, which other threads use at the same time.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if getattr(function, "__name__", "") in _RANDOM and options.get("generator") is None:
            options["generator"] = self._generator
        return function(*args, **options)


def transform_image(path: str, pixels: Pixels, seed: Sequence[int]) -> Pixels:
    """Apply a transform to an image, in any thread.

    Args:
        path: Import path of the transform.
        pixels: uint8 array (H, W, C).
        seed: Seed of the random numbers that the transform draws through PyTorch.

    Raises:
        InputError: If the result is not a uint8 tensor of the same shape.
    """
    image = torch.from_numpy(pixels.copy(order="C")).permute(2, 0, 1)
    with _SeededDraws(int(np.random.default_rng(seed).integers(2**63))):
        result = _load_transform(path)(image)
    if not isinstance(result, Tensor):
        raise InputError(f"The transform {path} returns {_kind(result)}, not an image tensor.")
    if result.dtype != torch.uint8 or result.shape != image.shape:
        raise InputError(
            f"The transform {path} returns {result.dtype} of the shape {tuple(result.shape)}; "
            f"it must return torch.uint8 of the shape {tuple(image.shape)}, as it was given."
        )
    transformed: Pixels = result.permute(1, 2, 0).numpy()
    return transformed


def image_losses(
    spec: TrainSpec, task: Task, texts: Sequence[str], device: torch.device
) -> ImageLosses:
    """Return the loss that training minimises: the task's, or one of the user's own.

    Args:
        spec: Specification with the loss.
        task: Prediction task.
        texts: Label texts of the training split.
        device: Device of the logits and targets.
    """
    if not is_import_path(spec.loss):
        return task.image_losses(spec.loss_options, texts)
    loss = _load_callable(spec.loss)
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def require_custom_objects(
    spec: TrainSpec, task: Task, contract: ImageContract, images: LabelledImages
) -> None:
    """Try the transform and the loss of a specification, if it names any.

    Args:
        spec: Specification with the import paths.
        task: Prediction task.
        contract: Image contract of the network's input.
        images: Labelled images.

    Raises:
        UserError: If one of them cannot be imported, fails, or returns something else.
    """
    if spec.transform is not None:
        pixels = np.random.default_rng(0).integers(0, 256, contract.shape, np.uint8)
        with _reported(f"transform {spec.transform}", "on a uint8 image tensor"):
            transform_image(spec.transform, pixels, (0,))
    if is_import_path(spec.loss):
        _require_loss(spec, task, contract, images.take([0, min(1, len(images) - 1)]))


def _require_loss(
    spec: TrainSpec, task: Task, contract: ImageContract, images: LabelledImages
) -> None:
    sides = contract.size if task.predicts_pixels else ()
    outputs = torch.randn(len(images), task.num_outputs, *sides, requires_grad=True)
    targets = targets_for_loss(task, images, contract)[np.arange(len(images))]
    if spec.mixup or spec.cutmix:
        targets = task.soft_targets(targets)
    shown = f"{targets.dtype} {tuple(targets.shape)}"
    with _reported(f"loss {spec.loss}", f"on logits {tuple(outputs.shape)} and targets {shown}"):
        losses = image_losses(spec, task, images.labels, outputs.device)(outputs, targets)
    if not isinstance(losses, Tensor) or losses.shape != (len(images),):
        shape = f"the shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else _kind(losses)
        raise InputError(
            f"The loss {spec.loss} returns {shape} for two images; it must return one value per "
            "image, as with reduction='none'."
        )
    if not losses.requires_grad:
        raise InputError(f"The loss {spec.loss} has no gradient; compute it from the logits.")


@contextlib.contextmanager
def _reported(name: str, where: str) -> Iterator[None]:
    """Turn any error of a user's own code into one sentence.

    Raises:
        UserError: If the code inside raises.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise InputError(
            f"The {name} fails {where} ({type(error).__name__}: {error}); correct it."
        ) from error


def _load_callable(path: str) -> Callable[..., Any]:
    """Return an object of an extension that can be called; a class is constructed first.

    Raises:
        UserError: If there is no such object.
    """
    found = load_object(path)
    value = found() if isinstance(found, type) else found
    if not callable(value):
        raise InputError(f"{path} is {_kind(value)}, which cannot be called.")
    return value  # type: ignore[no-any-return]


_load_transform = functools.cache(_load_callable)  # it is called for every image


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"
