"""Random weights in the place of published ones, and what torchvision finds with them.

The weights are scaled so that scores are spread over their range, as trained weights have them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from eagleray.models import published_files
from tests.support.images import Pixels

__all__ = ["hub_folder", "noise", "objects_of_torchvision", "publish_network"]


def hub_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the one of torch's hub, without a network to download from."""

    def unreachable(url: str, *_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder))  # as set_dir does, and undone
    # Random weights have another digest than those whose name they bear.
    monkeypatch.setattr(published_files, "digest_in", lambda _: "")
    (folder / "checkpoints").mkdir(exist_ok=True)
    return folder


def noise(size: tuple[int, int], seed: int = 0) -> Pixels:
    """Return a picture of noise at several scales, uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, *size)
    for cells in (4, 16, 64):
        coarse = torch.rand(1, 3, cells, cells, generator=generator)
        total += nn.functional.interpolate(coarse, size, mode="bilinear")
    pixels: Pixels = (total / 3 * 255)[0].permute(1, 2, 0).to(torch.uint8).numpy()
    return np.ascontiguousarray(pixels)


def publish_network(hub: Path, name: str, pixels: Pixels) -> None:
    """Put random weights of a network where a download of its published ones would be.

    Args:
        hub: Folder of torch's hub.
        name: Name of the network.
        pixels: A picture for which scores are to be spread.
    """
    torch.manual_seed(3)
    entry = torchvision.models.get_model_weights(name).DEFAULT
    auxiliary = {"aux_loss": True} if name.startswith(("fcn", "deeplab")) else {}
    network: Any = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, **auxiliary
    )
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    _fit_statistics(network, image)
    if hasattr(network, "transform"):
        _spread_outputs(network, image)
    torch.save(network.state_dict(), hub / "checkpoints" / entry.url.rsplit("/", 1)[-1])


def objects_of_torchvision(name: str, pixels: Pixels, **options: Any) -> list[tuple[float, ...]]:
    """Return what torchvision's own network finds: x1, y1, x2, y2, score and category, best first.

    It computes in double precision.

    Args:
        name: Name of the network, whose weights are in the folder of the hub.
        pixels: A picture of the size that the network takes, uint8 (H, W, 3).
        options: Settings of the network.
    """
    network = torchvision.models.get_model(name, weights="DEFAULT", **options).eval().double()
    image = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    with torch.inference_mode():
        (found,) = network([image])
    rows = torch.cat(
        [found["boxes"], found["scores"][:, None], found["labels"][:, None].double()], dim=1
    )
    return [tuple(row) for row in rows.tolist()]


def _fit_statistics(network: Any, image: Tensor) -> None:
    """Give batch normalisation the statistics of an image, so that no layer's outputs explode."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    images = torch.stack([image, image.flip(2)])
    mean, std = (
        torch.tensor(one)[:, None, None]
        for one in (
            (network.transform.image_mean, network.transform.image_std)
            if hasattr(network, "transform")
            else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
    )
    with torch.no_grad():
        maps = network.backbone((images - mean) / std)
        if hasattr(network, "classifier"):
            network.eval()
            for layer in layers:
                layer.train()
            network((images - mean) / std)
        elif hasattr(network, "head"):
            network.head(list(maps.values()))
    network.eval()


def _spread_outputs(network: Any, image: Tensor) -> None:
    """Scale the last layers, one kind after the other, so that boxes and scores differ."""
    for kind, deviation in (
        ("rpn.head.cls_logits", 2.0),
        ("rpn.head.bbox_pred", 0.2),
        ("box_predictor.cls_score", 3.0),
        ("box_predictor.bbox_pred", 0.4),
        ("regression_head.bbox_reg", 0.4),
        ("regression_head.module_list", 1.0),
        ("classification_head.cls_logits", 1.0),
        ("classification_head.module_list", 2.0),
    ):
        layers = [
            layer
            for path, layer in network.named_modules()
            if kind in path
            and isinstance(layer, nn.Conv2d | nn.Linear)
            and getattr(layer, "groups", 1) == 1
        ]
        if layers:
            _scale(layers, deviation, lambda: network([image]))


def _scale(layers: list[nn.Conv2d | nn.Linear], deviation: float, run: Callable[[], Any]) -> None:
    """Scale layers so that their outputs have a standard deviation, all together."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output.flatten()))
        for layer in layers
    ]
    with torch.no_grad():
        run()
        for hook in hooks:
            hook.remove()
        factor = deviation / torch.cat(outputs).std()
        for layer in layers:
            layer.weight.mul_(factor)
