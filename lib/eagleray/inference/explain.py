"""Explains predictions of classifiers by Grad-CAM: where in an image the evidence for a label is.

    explainer = Explainer(package)
    explanation = explainer.explain(decoded, "cat")
    explanation.heat        # (H, W) in [0, 1], over the network's input

Each channel of the last feature map is weighted by the mean gradient of the label's logit; what is
positive in the weighted sum is the evidence (Selvaraju et al., "Grad-CAM: Visual Explanations from
Deep Networks via Gradient-based Localization", ICCV 2017).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eagleray.imaging import DecodedImage
from eagleray.imaging.geometry import Frame, frame_of
from eagleray.inference.eager import forward_pass
from eagleray.inference.feature_map import find_feature_layer
from eagleray.models.attributes import Features, num_features
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage

__all__ = ["Explainer", "Explanation"]

Floats = npt.NDArray[np.float32]

_EPSILON = 1e-7  # keeps a map without evidence from being divided by zero


@dataclass(frozen=True)
class Explanation:
    """Where in an image the evidence for a label is.

    Attributes:
        label: The label.
        heat: float32 array (H, W) over the network's input, from 0 for the least evidence in the
            image to 1 for the most; all 0 if there is none.
        frame: Maps places in the input to the upright original.
        channels: The last feature map, float32 array (C, h, w).
        weights: Mean gradient of the label's logit by channel, float32 array (C,).
    """

    label: str
    heat: Floats
    frame: Frame
    channels: Floats
    weights: Floats

    @property
    def contributions(self) -> Floats:
        """What each channel adds to the evidence, averaged over the places (C,)."""
        added: Floats = self.weights * self.channels.mean(axis=(1, 2))
        return added


class Explainer:
    """Explains the predictions of a classifier, with a float32 copy of its network.

    Threads may share it; they take turns.

    Args:
        package: The model package.
        device: Device of PyTorch.
        num_threads: Number of threads on a CPU; None takes PyTorch's default.

    Raises:
        PackageError: If the network is a graph or hosted: there are no gradients.
        InputError: If the task has no labels, or the network no feature map before its head.
    """

    def __init__(
        self, package: ModelPackage, *, device: str = "cpu", num_threads: int | None = None
    ) -> None:
        self._package, self._device, self._num_threads = package, device, num_threads
        self.require_label(next(iter(package.task.labels), ""))
        package.require_pytorch()
        module = package.build_module().requires_grad_(False)
        contract = package.contract
        inputs = [torch.zeros(1, contract.channels, *contract.size)]
        if length := num_features(package.attributes):
            inputs.append(torch.zeros(1, length))
        with forward_pass():
            self._layer = find_feature_layer(module, package.manifest.architecture, inputs)
        self._network = ImageNetwork(module, contract).to(device).eval()
        self._turn = threading.Lock()

    @property
    def layer(self) -> str:
        """Name of the layer whose output is the last feature map."""
        return self._layer.path

    def require_label(self, label: str) -> None:
        """Check that a label can be explained.

        Raises:
            InputError: If the task has no labels, or no logit for each.
            UnknownNameError: If the model has no such label.
        """
        task = self._package.task
        task.label_evidence(torch.zeros(1, task.num_outputs), label)

    def explain(
        self, image: DecodedImage, label: str, attributes: Features | None = None
    ) -> Explanation:
        """Find the evidence for a label.

        Args:
            image: An image that was decoded under the package's contract.
            label: One of the model's labels.
            attributes: float32 array (A,) of the image's attributes, if the model takes any.

        Raises:
            UnknownNameError: If the model has no such label.
        """
        inputs = [torch.from_numpy(np.stack([image.pixels])).to(self._device)]
        if attributes is not None:
            inputs.append(torch.from_numpy(np.stack([attributes])).to(self._device))
        with self._turn, forward_pass():
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)  # holds for the calling thread only
            features, gradients = self._differentiate(inputs, label)
        weights = gradients.mean(axis=(1, 2))
        return Explanation(
            label,
            _heat(np.einsum("c,chw->hw", weights, features), image.pixels.shape[:2]),
            frame_of(self._package.contract, image.width, image.height),
            features,
            weights,
        )

    def _differentiate(self, inputs: list[Tensor], label: str) -> tuple[Floats, Floats]:
        """Return the feature map and the gradient of the label's logit by it, each (C, h, w)."""
        with torch.enable_grad(), self._watched_output() as watched:
            outputs = self._network(*inputs)
            evidence = self._package.task.label_evidence(outputs, label)
            output, passed_on = watched[-1]
            (gradient,) = torch.autograd.grad(evidence.sum(), output, materialize_grads=True)
        features, gradients = (
            self._layer.as_map(tensor.detach())[0].float().cpu().numpy()
            for tensor in (passed_on, gradient)
        )
        return features, gradients

    @contextmanager
    def _watched_output(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Collect what the layer returns in the block.

        Yields:
            For each call the output, as the leaf that gradients are taken by, and the copy that the
            network goes on with: a ReLU behind the layer may work in place.
        """
        watched: list[tuple[Tensor, Tensor]] = []

        def watch(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            watched.append((leaf, leaf.clone()))
            return watched[-1][1]

        layer = self._network.module.get_submodule(self._layer.path)
        hook = layer.register_forward_hook(watch)
        try:
            yield watched
        finally:
            hook.remove()


def _heat(evidence: Floats, size: tuple[int, int]) -> Floats:
    """Return positive evidence (h, w) at the size (H, W) of the input, scaled to [0, 1]."""
    height, width = size
    scaled = _scaled(np.maximum(evidence, 0))
    return _scaled(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR))


def _scaled(values: Floats) -> Floats:
    above = values - values.min()
    return np.asarray(above / (_EPSILON + above.max()), np.float32)
