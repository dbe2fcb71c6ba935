"""Reads images and attributes from the input tensors of a request."""

from __future__ import annotations

import math

from eagleray.core.errors import InputError
from eagleray.imaging import DecodedImage, ImageContract
from eagleray.serving.protocol.requests import InferRequest, InputTensor

__all__ = ["read_attributes", "read_images"]

_IMAGES = ("image", "pixels")


def read_images(request: InferRequest, contract: ImageContract) -> list[bytes | DecodedImage]:
    """Return the images of a request.

    Raises:
        InputError: If its inputs do not fit the model.
    """
    tensors = [tensor for tensor in request.inputs if tensor.name in _IMAGES]
    if len(tensors) != 1:
        raise InputError(
            f"The request has {len(tensors)} inputs with images; send one, image or pixels."
        )
    (tensor,) = tensors
    _require_shape(tensor)
    if isinstance(tensor.elements, list):
        if tensor.name != "image" or len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
            raise InputError(
                "Encoded images must be the input image, BYTES of shape [N] or [N, 1]."
            )
        return list(tensor.elements)
    height, width, channels = contract.shape
    if tensor.name == "image":
        raise InputError(
            f"Input image must be BYTES, one element for each image, not {tensor.datatype}; "
            "decoded images are the input pixels."
        )
    if tensor.name != "pixels" or tensor.datatype != "UINT8" or tensor.shape[1:] != contract.shape:
        raise InputError(
            "Decoded images must be the input pixels, UINT8 of shape "
            f"[N, {height}, {width}, {channels}]."
        )
    pixels = tensor.elements.reshape(tensor.shape)
    return [DecodedImage(image, width, height) for image in pixels]


def read_attributes(request: InferRequest, num_images: int) -> list[dict[str, object]] | None:
    """Return the attributes of each image of a request; None if it has none.

    Raises:
        InputError: If their number is not that of the images, or they are not valid text.
    """
    columns: dict[str, list[object]] = {}
    for tensor in request.inputs:
        if tensor.name in _IMAGES:
            continue
        _require_shape(tensor)
        if tensor.shape not in ((num_images,), (num_images, 1)) or tensor.name in columns:
            raise InputError(
                f"Input {tensor.name}: an attribute must be sent once, with shape [{num_images}] "
                f"as the images, not {list(tensor.shape)}."
            )
        columns[tensor.name] = _attribute_values(tensor)
    if not columns:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _attribute_values(tensor: InputTensor) -> list[object]:
    if isinstance(tensor.elements, list):
        try:
            return [element.decode() or None for element in tensor.elements]
        except UnicodeDecodeError:
            raise InputError(f"Input {tensor.name}: an element is not valid text.") from None
    return [None if math.isnan(value) else value for value in tensor.elements.tolist()]


def _require_shape(tensor: InputTensor) -> None:
    if math.prod(tensor.shape) != len(tensor.elements):
        raise InputError(
            f"Input {tensor.name}: shape {list(tensor.shape)} does not match its "
            f"{len(tensor.elements):,} elements."
        )
