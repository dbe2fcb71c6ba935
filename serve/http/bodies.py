"""Reads the images, attributes and parameters of a prediction from the request's body."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from eagleray.core.errors import InputError
from eagleray.serve.http.content_types import (
    FORM_IN_URL,
    RAW_TYPES,
    content_type,
    is_json,
    require_uncompressed,
)
from eagleray.serve.http.image_json import ImageInJson, parse_attributes
from eagleray.serve.http.parameters import ParameterError, PredictParameters, describe_fault
from eagleray.serving.prediction.image_urls import ImageUrl
from eagleray.serving.problems import UnsupportedError
from eagleray.serving.protocol.image_text import decode_image_text
from eagleray.serving.protocol.json_body import read_json

__all__ = ["BODIES", "JsonBody", "PredictBody", "read_body"]

_MAX_PARTS = 1000
_IMAGE_FIELDS = frozenset({"image", "images", "file", "files"})
_FORM_FIELD = re.compile(rb"[a-z_]{1,20}(\[\]|%5B%5D)?=", re.IGNORECASE)


class JsonBody(PredictParameters):
    """A JSON body: one image or several, and parameters."""

    image: ImageInJson | None = Field(default=None, description="An object, or a plain string.")
    images: list[ImageInJson] | None = Field(default=None, description="Objects or plain strings.")

    @model_validator(mode="after")
    def _has_one_member(self) -> JsonBody:
        if (self.image is None) == (self.images is None):
            raise ValueError("the body has one of image and images")
        return self


BODIES: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    "attributes": {"type": "string"},
                },
                "required": ["image"],
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {"schema": {"$ref": "#/components/schemas/JsonBody"}},
    },
}
"""The supported bodies, for the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class PredictBody:
    """The content of a prediction's body.

    Attributes:
        images: Images in order.
        is_single: Whether the request is about one image only.
        parameters: Parameters in the body.
        attributes: Attributes of each image; None if the request has none.
    """

    images: Sequence[bytes | ImageUrl]
    is_single: bool
    parameters: dict[str, Any] = field(default_factory=dict)
    attributes: Sequence[Mapping[str, object]] | None = None


async def read_body(request: Request, *, max_bytes: int) -> PredictBody:
    """Read the body of a prediction.

    Args:
        request: The request, whose body has not been read.
        max_bytes: Maximum bytes of a form's field.

    Raises:
        InputError: If the body does not match its content type.
        UnsupportedError: If the content type is not supported.
    """
    require_uncompressed(request)
    kind = content_type(request)
    if kind == "multipart/form-data":
        return await _read_form(request, max_bytes)
    if is_json(kind):
        return _parse_json(request, await request.body())
    if kind not in RAW_TYPES and not kind.startswith("image/"):
        raise UnsupportedError(
            f"Content type {kind} is not supported; send image/*, application/octet-stream, "
            "multipart/form-data or application/json."
        )
    body = await request.body()
    # curl declares any body as a form, unless it is told otherwise.
    if kind in RAW_TYPES and body[:1] == b"{":
        return _parse_json(request, body)
    if kind == FORM_IN_URL and _FORM_FIELD.match(body):
        return _from_fields(request, _fields_in_url(body))
    return PredictBody([body], is_single=True, attributes=_attributes_in_query(request))


def _fields_in_url(body: bytes) -> list[tuple[str, str]]:
    try:
        fields = parse_qsl(
            body.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARTS
        )
    except ValueError:
        raise InputError(f"The form has more than {_MAX_PARTS:,} fields.") from None
    # Spaces in base64 were + that were not escaped; line breaks are not spaces.
    return [(name, text.replace(" ", "+") if _is_image(name) else text) for name, text in fields]


async def _read_form(request: Request, max_bytes: int) -> PredictBody:
    try:
        async with request.form(
            max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=max_bytes
        ) as form:
            parts = [
                (name, await _content(part) if isinstance(part, UploadFile) else part)
                for name, part in form.multi_items()
            ]
    except HTTPException as error:
        raise InputError(f"The multipart form cannot be read ({error.detail}).") from None
    except UnicodeError:  # of a codec that its content type names
        raise InputError("The multipart form cannot be decoded by its charset.") from None
    return _from_fields(request, parts)


async def _content(part: UploadFile) -> bytes:
    content = await part.read()
    if part.headers.get("content-transfer-encoding", "").strip().lower() == "base64":
        return decode_image_text(content.decode("latin-1"))
    return content


def _from_fields(request: Request, fields: Iterable[tuple[str, str | bytes]]) -> PredictBody:
    """Interpret the fields of a form: files are images, and so is text in an image's field.

    Raises:
        ParameterError: If a parameter is there more than once.
    """
    images: list[bytes | ImageUrl] = []
    parameters: dict[str, Any] = {}
    for name, value in fields:
        if isinstance(value, bytes):
            images.append(value)
        elif _is_image(name):
            images.append(_image_of_field(value))
        elif name in parameters:
            raise ParameterError(f"Parameter {name} is in the form more than once.")
        else:
            parameters[name] = value
    text = parameters.pop("attributes", None)
    attributes = _attributes_in_query(request) if text is None else parse_attributes(text)
    return PredictBody(images, len(images) == 1, parameters, attributes)


def _is_image(name: str) -> bool:
    return name.removesuffix("[]") in _IMAGE_FIELDS


def _image_of_field(text: str) -> bytes | ImageUrl:
    """Return the image of a field without a file name, whose bytes were decoded as text."""
    if not text.isascii():
        try:
            return text.encode("latin-1")  # how bytes are decoded that are not UTF-8
        except UnicodeEncodeError:
            return text.encode()
    try:
        return ImageInJson.model_validate(text).content()
    except ValidationError as error:
        raise InputError(f"The form's image, {describe_fault(error, ImageInJson)}.") from None


def _attributes_in_query(request: Request) -> Sequence[Mapping[str, object]] | None:
    text = request.query_params.get("attributes")
    return None if text is None else parse_attributes(text)


def _parse_json(request: Request, body: bytes) -> PredictBody:
    given = read_json(body)
    if not isinstance(given, dict):
        raise InputError('The JSON body must be an object, as in {"image": {"base64": "…"}}.')
    try:
        parsed = JsonBody.model_validate(given)
    except ValidationError as error:
        of_images = error.errors()[0]["loc"][:1] in (("image",), ("images",), ())
        kind = InputError if of_images else ParameterError
        raise kind(f"JSON body: {describe_fault(error, JsonBody)}.") from None
    images = [parsed.image] if parsed.image is not None else parsed.images or []
    attributes: Sequence[Mapping[str, object]] | None = _attributes_in_query(request)
    if any(image.attributes is not None for image in images):
        attributes = [image.attributes or {} for image in images]
    return PredictBody(
        [image.content() for image in images],
        is_single=parsed.image is not None,
        parameters=parsed.model_dump(exclude={"image", "images"}, exclude_unset=True),
        attributes=attributes,
    )
