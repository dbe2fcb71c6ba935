"""The network of the service's peers, as it is commonly written, and their arguments."""

from __future__ import annotations

import argparse
import io
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

__all__ = ["Network", "parse_arguments"]


class Network:
    """Pillow's decode, torchvision's reference transform, the eager float32 network.

    Args:
        weights: Safetensors file.
    """

    def __init__(self, weights: str) -> None:
        self.module = resnet18()
        self.module.load_state_dict(safetensors.torch.load_file(weights))
        self.module.eval()
        self.transform = ResNet18_Weights.DEFAULT.transforms()

    def predict(self, images: list[bytes]) -> list[dict[str, Any]]:
        """Return the number of the most likely class of each image, and its probability."""
        tensors = [self.transform(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
        with torch.inference_mode():
            best = self.module(torch.stack(tensors)).softmax(1).max(dim=1)
        return [
            {"label": int(index), "score": float(score)}
            for score, index in zip(best.values, best.indices, strict=True)
        ]


def parse_arguments() -> argparse.Namespace:
    """Return the weights' file and the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()
