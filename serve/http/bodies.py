"""From a request's body to images: multipart forms, raw bodies, JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from eagleray.errors import AttributeValueError, InputError
from eagleray.imaging.contract import first_fault
from eagleray.serving.json_body import read_json
from eagleray.serving.links import ImageLink
from eagleray.serving.problems import UnsupportedError

__all__ = [
    "BODIES",
    "Asked",
    "AskedInQuery",
    "ImageInJson",
    "ImagesAsked",
    "JsonBody",
    "ParameterError",
    "read_asked",
    "read_images",
    "require_plain",
]

_RAW = ("application/octet-stream", "application/x-www-form-urlencoded")
_MOST_PARTS = 1000


AttributeInJson = bool | int | float | str | None


class ImageInJson(BaseModel):
    """An image in JSON: its bytes in base64, or where it is."""

    model_config = ConfigDict(extra="forbid")

    base64: str | None = Field(default=None, description="The encoded file, in base64.")
    url: str | None = Field(
        default=None, description="An http(s) address that the service may fetch."
    )
    uri: str | None = Field(
        default=None, description="A storage location that the service may read."
    )
    attributes: dict[str, AttributeInJson] | None = Field(
        default=None, description="What is known of the image, for models that take attributes."
    )

    @model_validator(mode="after")
    def _one(self) -> ImageInJson:
        if sum(value is not None for value in (self.base64, self.url, self.uri)) != 1:
            raise ValueError("an image has one of base64, url and uri")
        return self

    def content(self) -> bytes | ImageLink:
        """Return the bytes, or where they are.

        Raises:
            InputError: The text is no base64.
        """
        if self.base64 is None:
            return ImageLink(self.url or self.uri or "")
        text = self.base64
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InputError("An image in the JSON body is no base64.") from None


class Asked(BaseModel):
    """What a caller may say besides the images."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    top_k: int = Field(default=5, ge=1, le=1000, description="Labels listed at most.")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Lowest probability of a label that is listed."
    )
    version: str | None = Field(
        default=None, min_length=1, max_length=64, description="A version number, or an alias."
    )
    timeout_ms: float | None = Field(
        default=None, gt=0, le=600_000, description="After it no answer is wanted any more."
    )


class AskedInQuery(Asked):
    """What a caller may say in the query."""

    attributes: str | None = Field(
        default=None,
        description="What is known of the image, as JSON; of several images, a list. A multipart "
        "form has it as a field.",
    )


class JsonBody(Asked):
    """A JSON body: one image or several, and what else is asked."""

    image: ImageInJson | None = None
    images: list[ImageInJson] | None = None

    @model_validator(mode="after")
    def _one(self) -> JsonBody:
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
"""The bodies that are taken, for the OpenAPI document."""


def require_plain(request: Request) -> None:
    """Refuse a compressed body: what it expands to has no bound.

    Raises:
        UnsupportedError: It is one.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedError("A compressed body is not taken; images are compressed already.")


@dataclass(frozen=True, slots=True)
class ImagesAsked:
    """The images of a request.

    Attributes:
        images: In their order.
        alone: Whether the request is about one image alone.
        asked: What a JSON body asks besides.
        attributes: What is known of each image; None where nothing is said.
    """

    images: Sequence[bytes | ImageLink]
    alone: bool
    asked: dict[str, Any] = field(default_factory=dict)
    attributes: Sequence[Mapping[str, object]] | None = None


async def read_images(request: Request) -> ImagesAsked:
    """Read the images of a request.

    Raises:
        InputError: The body is not what its content type says.
        UnsupportedError: It is of a content type that is not taken.
    """
    require_plain(request)
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0]
    kind = kind.strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request)
    if kind == "application/json":
        return _read_json(await request.body())
    if kind in _RAW or kind.startswith("image/"):
        return ImagesAsked(
            [await request.body()], alone=True, attributes=_attributes_in_query(request)
        )
    raise UnsupportedError(
        f"A body of {kind or 'no'} content type is not taken; send image/*, "
        "application/octet-stream, multipart/form-data or application/json."
    )


async def _read_form(request: Request) -> ImagesAsked:
    try:
        async with request.form(max_files=_MOST_PARTS, max_fields=_MOST_PARTS) as form:
            files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            images = [await part.read() for part in files]
            text = form.get("attributes")
    except HTTPException as error:
        raise InputError(f"The multipart form cannot be read ({error.detail}).") from None
    except UnicodeError:  # of a codec that its content type names
        raise InputError(
            "The multipart form cannot be read by the charset that it names."
        ) from None
    attributes = _parse_attributes(text) if isinstance(text, str) else _attributes_in_query(request)
    return ImagesAsked(images, alone=len(images) == 1, attributes=attributes)


def _attributes_in_query(request: Request) -> Sequence[Mapping[str, object]] | None:
    text = request.query_params.get("attributes")
    return None if text is None else _parse_attributes(text)


def _parse_attributes(text: str) -> Sequence[Mapping[str, object]]:
    """Read what is known of one image, or of each of several.

    Raises:
        AttributeValueError: It is no such JSON.
    """
    try:
        found = read_json(text.encode())
    except (InputError, UnicodeEncodeError) as error:
        raise AttributeValueError(f"The attributes are no JSON ({error}).") from None
    several = found if isinstance(found, list) else [found]
    if not all(isinstance(one, dict) for one in several):
        raise AttributeValueError(
            'The attributes are an object, as in {"age": 41}, or a list with one for each image.'
        )
    return several


def _read_json(body: bytes) -> ImagesAsked:
    try:
        parsed = JsonBody.model_validate(read_json(body))
    except ValidationError as error:
        raise InputError(f"JSON body: {first_fault(error)}.") from None
    asked = parsed.model_dump(exclude={"image", "images"}, exclude_unset=True)
    alone = parsed.image is not None
    images = [parsed.image] if parsed.image is not None else parsed.images or []
    said = any(image.attributes is not None for image in images)
    return ImagesAsked(
        [image.content() for image in images],
        alone=alone,
        asked=asked,
        attributes=[image.attributes or {} for image in images] if said else None,
    )


def read_asked(request: Request, from_body: dict[str, Any]) -> Asked:
    """Read what is asked, from the query and the body; the body wins.

    Raises:
        InputError: With the parameter at fault.
    """
    try:
        return AskedInQuery.model_validate_strings(
            {
                **dict(request.query_params),
                **{name: str(value) for name, value in from_body.items() if value is not None},
            }
        )
    except ValidationError as error:
        raise ParameterError(f"Parameter {first_fault(error)}.") from None


class ParameterError(InputError):
    """A parameter of the query or the body is not valid."""

    http_status = 422
