"""Distillation: a registered model teaches a run (Hinton, Vinyals, Dean 2015).

The loss of an image is `(1 - teacher_weight) * loss + teacher_weight * divergence`: the loss of its
label, and the divergence from the teacher's prediction for the same augmented image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage
from eagleray.tasks import Task
from eagleray.tasks.base import only_tensor
from eagleray.training.spec import TrainSpec

__all__ = ["Teacher"]


class Teacher:
    """A network that teaches: its weights are fixed, and it has no gradients.

    Args:
        package: Package of the teacher.
        spec: Specification with the weight, the temperature and the precision.
        task: Task of the student.
        device: Device of the images.
    """

    def __init__(
        self, package: ModelPackage, spec: TrainSpec, task: Task, device: torch.device
    ) -> None:
        autocast = torch.bfloat16 if spec.precision == "bfloat16" else None
        network = ImageNetwork(package.build_module(), package.contract, autocast=autocast)
        self._network = network.to(device).to(memory_format=torch.channels_last).eval()
        self._network.requires_grad_(requires_grad=False)
        self._size, self._weight = package.contract.size, spec.teacher_weight
        self._losses = task.teacher_losses(package.task, spec.teacher_temperature)

    def teach(self, losses: Tensor, outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Return the losses of images with the teacher's share.

        Args:
            losses: Losses of the labels (N,).
            outputs: Outputs of the student (N, …).
            inputs: Inputs of the student: uint8 images (N, H, W, C), and attributes if any.
        """
        divergences = self._losses(outputs, self.outputs(inputs))
        return (1 - self._weight) * losses + self._weight * divergences

    @torch.no_grad()
    def outputs(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the teacher's outputs (N, …) for inputs of the student."""
        images, *attributes = inputs
        return only_tensor(self._network(_resized(images, self._size), *attributes))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (N, H, W, C) in the teacher's size: bilinear, antialiased where it shrinks."""
    if images.shape[1:3] == size:
        return images
    resized = functional.interpolate(
        images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True
    )
    return resized.permute(0, 2, 3, 1)
