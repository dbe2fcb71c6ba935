"""Builds the bodies of prediction requests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eagleray.imaging.encoded import EncodedImage, encoded_bytes, require_sequence

__all__ = ["Image", "request_body"]

Image = EncodedImage | str
"""An image file (bytes, path, open file), or the address (`https://…`, `s3://…`) that the service
reads."""


def request_body(images: Sequence[Image], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the body and the parameters of a prediction request, as httpx takes them.

    Image files are sent as bytes or as a form; addresses, which the service reads, as JSON.

    Args:
        images: Image files or addresses.
        fields: Parameters of the request, and `attributes`.

    Raises:
        TypeError: If an image is not an image file, such as a decoded image.
        ValueError: If the images and their attributes do not fit together.
    """
    params = {name: value for name, value in fields.items() if value is not None}
    attributes = params.pop("attributes", None)
    require_sequence(images)
    known = [attributes] if isinstance(attributes, Mapping) else attributes
    if known is not None and len(known) != len(images):
        raise ValueError(
            f"{len(images)} images have {len(known)} attributes; give one for each image"
        )
    links = [image for image in images if isinstance(image, str)]
    if links and len(links) < len(images):
        raise ValueError("all images of a request are either addresses, or bytes and files")
    if links:
        described: list[dict[str, Any]] = [_image_json(link) for link in links]
        if known is not None:
            described = [
                {**link, "attributes": dict(one)}
                for link, one in zip(described, known, strict=True)
            ]
        body = {"image": described[0]} if len(links) == 1 else {"images": described}
        return {"json": {**body, **params}}
    contents = [encoded_bytes(item) for item in images]
    if len(contents) == 1 and known is None:
        return {"params": params, "content": contents[0]}
    files = [("image", (str(number), item)) for number, item in enumerate(contents)]
    # In the body, because logs of addresses must not show personal data.
    data = {} if known is None else {"attributes": json.dumps([dict(one) for one in known])}
    return {"params": params, "files": files, "data": data}


def _image_json(address: str) -> dict[str, Any]:
    """Return an address as an image of a JSON body.

    Raises:
        ValueError: If the text is not an address, but probably a file on this machine.
    """
    if address[:5].lower() == "data:":
        return {"base64": address}
    if "://" not in address and not address.startswith("/"):
        raise ValueError(
            f"{address!r} is not an address that a service reads; write Path(…) for a local file"
        )
    return {"url" if address.lower().startswith(("http://", "https://")) else "uri": address}
