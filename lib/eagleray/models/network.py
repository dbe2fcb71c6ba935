"""The network with its normalisation: decoded uint8 images in, float32 outputs out.

A network of images and attributes takes these as a second tensor.

Normalisation is part of the graph, so that uint8 crosses every bus and a compiler can fuse it.
Training and prediction use this one module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eagleray.imaging import ImageContract
from eagleray.tasks import NetworkOutput

__all__ = ["ImageNetwork", "graph_network"]


class ImageNetwork(nn.Module):
    """A network together with the normalisation of its image contract.

    Args:
        module: Maps normalised images (N, C, H, W), and attributes (N, A) if it takes any, to
            logits (N, num_outputs) or several named tensors (N, …).
        contract: The image contract, with mean and std for each channel in units of full scale.
        autocast: Type of convolutions and matrix products; None for the type of the weights.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, module: nn.Module, contract: ImageContract, *, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.autocast = autocast
        mean, std = torch.tensor(contract.mean), torch.tensor(contract.std)
        # (image / 255 - mean) / std as one multiply-add
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", (-mean / std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, attributes: Tensor | None = None) -> NetworkOutput:
        """Map images to the outputs of the network.

        Args:
            images: uint8 tensor (N, H, W, C).
            attributes: float32 tensor (N, A), if the module takes them.

        Returns:
            float32 tensor (N, num_outputs), or several float32 tensors (N, …) by name.
        """
        # Permuting NHWC gives NCHW in channels_last memory order without a copy.
        normalized = images.permute(0, 3, 1, 2).float() * self.scale + self.offset
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            outputs: NetworkOutput = (
                self.module(normalized)
                if attributes is None
                else self.module(normalized, attributes)
            )
        if isinstance(outputs, Tensor):
            return outputs.float()
        return {name: tensor.float() for name, tensor in outputs.items()}


class _NamedOutputs(nn.Module):
    """Returns some of the named tensors of a network as a tuple."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, images: Tensor, attributes: Tensor | None = None) -> tuple[Tensor, ...]:
        outputs = self.network(images) if attributes is None else self.network(images, attributes)
        return tuple(outputs[name] for name in self.names)


def graph_network(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a network to be traced as a graph.

    Args:
        network: Returns one tensor, or several by name.
        names: Names of the graph's outputs. Of several the network returns those, as a tuple in
            this order, and no others.
    """
    return network if len(names) == 1 else _NamedOutputs(network, names)
