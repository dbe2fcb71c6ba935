"""Photographs decoded, resized and cropped on the GPU: to know what it would bring.

nvJPEG decodes (`torchvision.io.decode_jpeg`), PyTorch resizes with its antialiased bilinear filter.
No contract says so: every step rounds in its own way, EXIF orientation is not applied, and one
photograph that cannot be decoded fails all that share its call.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from eagleray.imaging import ImageContract
from eagleray.imaging.contract import ShortestSide

__all__ = ["accepted", "decode_on_device", "why_not"]


def why_not(device: str, contract: ImageContract) -> str:
    """The reason why this cannot be done here; empty where it can."""
    if not device.startswith("cuda"):
        return "it takes CUDA"
    if contract.color != "rgb":
        return "it takes a contract in colour"
    return ""


def accepted(photos: Sequence[bytes], device: str) -> list[bytes]:
    """The photographs that nvJPEG decodes, each tried alone."""
    return [photo for photo in photos if _is_decoded(photo, device)]


def _is_decoded(photo: bytes, device: str) -> bool:
    try:
        _decode([photo], device)
    except RuntimeError:
        return False
    return True


def decode_on_device(photos: Sequence[bytes], contract: ImageContract, device: str) -> Tensor:
    """Decode photographs to a contract's size.

    Args:
        photos: JPEGs.
        contract: Gives the sizes of resize and crop; nothing else of it is kept to.
        device: Where to.

    Returns:
        uint8 tensor (N, H, W, C) on the device.
    """
    resize = contract.resize
    size = [resize.size] if isinstance(resize, ShortestSide) else [resize.height, resize.width]
    images = _decode(photos, device)
    # Those of one size go through the resize together: kernels for each photograph cost more.
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        alike[tuple(image.shape)].append(index)
    rows: dict[int, Tensor] = {}
    for indices in alike.values():
        stack = torch.stack([images[index] for index in indices])
        scaled = functional.resize(stack, size, antialias=True)
        cropped = functional.center_crop(scaled, list(contract.size))
        rows |= zip(indices, cropped, strict=True)
    in_order = torch.stack([rows[index] for index in range(len(photos))])
    return in_order.permute(0, 2, 3, 1).contiguous()


def _decode(photos: Sequence[bytes], device: str) -> list[Tensor]:
    """Decode to uint8 tensors (3, H, W), each of its own size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes cannot be written to, and nobody does
        encoded = [torch.frombuffer(photo, dtype=torch.uint8) for photo in photos]
        images: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return images
