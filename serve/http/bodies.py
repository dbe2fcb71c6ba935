"""From a request's body to images: multipart forms, raw bodies, JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qsl

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from eagleray.core.errors import AttributeValueError, InputError
from eagleray.core.validation import first_validation_error
from eagleray.serving.image_text import image_of_text
from eagleray.serving.image_urls import ImageLink
from eagleray.serving.json_body import read_json
from eagleray.serving.problems import UnsupportedError

__all__ = [
    "BODIES",
    "Asked",
    "AskedInQuery",
    "ImageInJson",
    "ImagesAsked",
    "JsonBody",
    "ParameterError",
    "fault_of",
    "read_asked",
    "read_images",
    "require_json",
    "require_json_type",
    "require_plain",
]

_FORM_IN_URL = "application/x-www-form-urlencoded"
_RAW = ("application/octet-stream", "binary/octet-stream", _FORM_IN_URL)
_MAX_PARTS = 1000
_IMAGE_FIELDS = frozenset({"image", "images", "file", "files"})
_FORM_FIELD = re.compile(rb"[a-z_]{1,20}(\[\]|%5B%5D)?=", re.IGNORECASE)


def _single_value(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError("an attribute is a text, a number, true, false or null")


AttributeInJson = Annotated[bool | int | float | str | None, BeforeValidator(_single_value)]


def _of_text(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return image_of_text(text)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None


ImageText = Annotated[
    bytes,
    BeforeValidator(_of_text),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes that are sent as text."""


class ImageInJson(BaseModel):
    """An image in JSON: its bytes in base64, or where it is; a text alone is either."""

    model_config = ConfigDict(extra="forbid")

    base64: ImageText | None = Field(
        default=None, description="The encoded file, in base64 or as a data URL."
    )
    url: str | None = Field(
        default=None, description="An http(s) address that the service may fetch."
    )
    uri: str | None = Field(
        default=None, description="A storage location that the service may read."
    )
    attributes: dict[str, AttributeInJson] | None = Field(
        default=None, description="What is known of the image, for models that take attributes."
    )

    @model_validator(mode="before")
    @classmethod
    def _as_object(cls, given: Any) -> Any:
        """Take a text alone, a data URL wherever an address may be, and `b64` as others call it."""
        if isinstance(given, str):
            return {_kind_of(given): given}
        if not isinstance(given, dict):
            raise ValueError("an image is a text in base64, or an object with base64, url or uri")
        return {
            "base64" if name == "b64" or _is_data_url(name, value) else name: value
            for name, value in given.items()
        }

    @model_validator(mode="after")
    def _one(self) -> ImageInJson:
        if sum(value is not None for value in (self.base64, self.url, self.uri)) != 1:
            raise ValueError("an image has one of base64, url and uri")
        return self

    def content(self) -> bytes | ImageLink:
        """Return the bytes, or where they are."""
        if self.base64 is not None:
            return self.base64
        return ImageLink(self.url or self.uri or "")


def _kind_of(text: str) -> str:
    """Return which member of an image a text alone is."""
    if text[:5].lower() == "data:" or "://" not in text[:64]:
        return "base64"
    return "url" if text[:8].lower().startswith(("http://", "https://")) else "uri"


def _is_data_url(name: str, value: object) -> bool:
    return name in ("url", "uri") and isinstance(value, str) and value[:5].lower() == "data:"


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

    image: ImageInJson | None = Field(default=None, description="Or its text alone.")
    images: list[ImageInJson] | None = Field(default=None, description="Or their texts alone.")

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


def require_json(request: Request) -> None:
    """Refuse a body that says of itself that it is no JSON, such as an image or a table.

    Raises:
        UnsupportedError: It does.
    """
    require_plain(request)
    kind = _kind(request)
    if kind.startswith(("image/", "multipart/")) or kind == "text/csv":
        raise UnsupportedError(f"A body of content type {kind} is not taken; send JSON.")


def require_json_type(request: Request) -> None:
    """Refuse a body that does not say of itself that it is JSON, as no page can send it unasked.

    Raises:
        UnsupportedError: It does not, or is compressed.
    """
    require_plain(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        said = f"of content type {kind}" if kind else "without a content type"
        raise UnsupportedError(f"A body {said} is not taken here; send application/json.")


def _kind(request: Request) -> str:
    text = request.headers.get("content-type") or _RAW[0]
    return text.partition(";")[0].strip().lower() or text


def require_plain(request: Request) -> None:
    """Refuse a compressed body: what it expands to has no bound.

    Raises:
        UnsupportedError: It is one.
    """
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise UnsupportedError("A compressed body is not taken; images are compressed already.")


@dataclass(frozen=True, slots=True)
class ImagesAsked:
    """The images of a request.

    Attributes:
        images: In their order.
        alone: Whether the request is about one image alone.
        asked: What the body asks besides.
        attributes: What is known of each image; None where nothing is said.
    """

    images: Sequence[bytes | ImageLink]
    alone: bool
    asked: dict[str, Any] = field(default_factory=dict)
    attributes: Sequence[Mapping[str, object]] | None = None


async def read_images(request: Request, *, max_bytes: int) -> ImagesAsked:
    """Read the images of a request.

    Args:
        request: Whose body is still to be read.
        max_bytes: Of a field of a form.

    Raises:
        InputError: The body is not what its content type says.
        UnsupportedError: It is of a content type that is not taken.
    """
    require_plain(request)
    kind = _kind(request)
    if kind == "multipart/form-data":
        return await _read_form(request, max_bytes)
    if kind == "application/json" or kind.endswith("+json"):
        return _read_json(request, await request.body())
    if kind not in _RAW and not kind.startswith("image/"):
        raise UnsupportedError(
            f"A body of content type {kind} is not taken; send image/*, "
            "application/octet-stream, multipart/form-data or application/json."
        )
    body = await request.body()
    # curl says that whatever it sends is a form, unless it is told otherwise.
    if kind in _RAW and body[:1] == b"{":
        return _read_json(request, body)
    if kind == _FORM_IN_URL and _FORM_FIELD.match(body):
        return _from_fields(request, _fields_in_url(body))
    return ImagesAsked([body], alone=True, attributes=_attributes_in_query(request))


def _fields_in_url(body: bytes) -> list[tuple[str, str]]:
    try:
        fields = parse_qsl(
            body.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARTS
        )
    except ValueError:
        raise InputError(f"The form has more than {_MAX_PARTS:,} fields.") from None
    # A + of base64 that was not escaped; line breaks are no spaces.
    return [(name, text.replace(" ", "+") if _is_image(name) else text) for name, text in fields]


async def _read_form(request: Request, max_bytes: int) -> ImagesAsked:
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
        raise InputError(
            "The multipart form cannot be read by the charset that it names."
        ) from None
    return _from_fields(request, parts)


async def _content(part: UploadFile) -> bytes:
    content = await part.read()
    if part.headers.get("content-transfer-encoding", "").strip().lower() == "base64":
        return image_of_text(content.decode("latin-1"))
    return content


def _from_fields(request: Request, fields: Iterable[tuple[str, str | bytes]]) -> ImagesAsked:
    """Read the fields of a form: files are images, and so are texts where an image belongs.

    Raises:
        ParameterError: There are fields of other names.
    """
    images: list[bytes | ImageLink] = []
    asked: dict[str, Any] = {}
    for name, value in fields:
        if isinstance(value, bytes):
            images.append(value)
        elif _is_image(name):
            images.append(_image_of_field(value))
        elif name in asked:
            raise ParameterError(f"Parameter {name} is in the form more than once.")
        else:
            asked[name] = value
    text = asked.pop("attributes", None)
    attributes = _attributes_in_query(request) if text is None else _parse_attributes(text)
    return ImagesAsked(images, alone=len(images) == 1, asked=asked, attributes=attributes)


def _is_image(name: str) -> bool:
    return name.removesuffix("[]") in _IMAGE_FIELDS


def _image_of_field(text: str) -> bytes | ImageLink:
    """Return the image of a field without a file name, whose bytes were taken for text."""
    if not text.isascii():
        try:
            return text.encode("latin-1")  # as bytes are read that are no UTF-8
        except UnicodeEncodeError:
            return text.encode()
    try:
        return ImageInJson.model_validate(text).content()
    except ValidationError as error:
        raise InputError(f"The form's image, {fault_of(error, ImageInJson)}.") from None


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


def _read_json(request: Request, body: bytes) -> ImagesAsked:
    given = read_json(body)
    if not isinstance(given, dict):
        raise InputError('The JSON body is an object, as in {"image": {"base64": "…"}}.')
    try:
        parsed = JsonBody.model_validate(given)
    except ValidationError as error:
        of_images = error.errors()[0]["loc"][:1] in (("image",), ("images",), ())
        kind = InputError if of_images else ParameterError
        raise kind(f"JSON body: {fault_of(error, JsonBody)}.") from None
    asked = parsed.model_dump(exclude={"image", "images"}, exclude_unset=True)
    alone = parsed.image is not None
    images = [parsed.image] if parsed.image is not None else parsed.images or []
    said = any(image.attributes is not None for image in images)
    return ImagesAsked(
        [image.content() for image in images],
        alone=alone,
        asked=asked,
        attributes=[image.attributes or {} for image in images]
        if said
        else _attributes_in_query(request),
    )


def read_asked(request: Request, from_body: dict[str, Any]) -> Asked:
    """Read what is asked, from the query and the body; the body wins.

    Raises:
        InputError: With the parameter at fault.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ParameterError(f"Parameter {twice} is in the query more than once.")
    try:
        return AskedInQuery.model_validate_strings(
            {
                **dict(request.query_params),
                **{name: str(value) for name, value in from_body.items() if value is not None},
            }
        )
    except ValidationError as error:
        raise ParameterError(f"Parameter {fault_of(error, AskedInQuery)}.") from None


def fault_of(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first fault to a caller; of a name that is not known, say which there are."""
    fault = error.errors()[0]
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        return f"{fault['loc'][0]} is not known; there are {', '.join(model.model_fields)}"
    return first_validation_error(error).replace("a valid dictionary", "an object")


class ParameterError(InputError):
    """A parameter of the query or the body is not valid."""

    http_status = 422
