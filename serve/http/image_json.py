"""Images and their attributes in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from eagleray.core.errors import AttributeValueError, InputError
from eagleray.serving.prediction.image_urls import ImageUrl
from eagleray.serving.protocol.image_text import decode_image_text
from eagleray.serving.protocol.json_body import read_json

__all__ = ["ImageInJson", "parse_attributes"]


def _single_value(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError("an attribute is a string, a number, true, false or null")


AttributeInJson = Annotated[bool | int | float | str | None, BeforeValidator(_single_value)]


def _decode_text(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return decode_image_text(text)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None


ImageText = Annotated[
    bytes,
    BeforeValidator(_decode_text),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes that are sent as text."""


class ImageInJson(BaseModel):
    """An image in JSON: its bytes in base64, or its location; a plain string may be either."""

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
        default=None, description="Attributes of the image, for models that take attributes."
    )

    @model_validator(mode="before")
    @classmethod
    def _as_object(cls, given: Any) -> Any:
        """Accept a plain string, a data URL in place of an address, and the name `b64`."""
        if isinstance(given, str):
            return {_member_of(given): given}
        if not isinstance(given, dict):
            raise ValueError("an image is a string in base64, or an object with base64, url or uri")
        return {
            "base64" if name == "b64" or _is_data_url(name, value) else name: value
            for name, value in given.items()
        }

    @model_validator(mode="after")
    def _has_one_source(self) -> ImageInJson:
        if sum(value is not None for value in (self.base64, self.url, self.uri)) != 1:
            raise ValueError("an image has one of base64, url and uri")
        return self

    def content(self) -> bytes | ImageUrl:
        """Return the bytes of the image, or its location."""
        if self.base64 is not None:
            return self.base64
        return ImageUrl(self.url or self.uri or "")


def _member_of(text: str) -> str:
    """Return the member of an image that a plain string is."""
    if text[:5].lower() == "data:" or "://" not in text[:64]:
        return "base64"
    return "url" if text[:8].lower().startswith(("http://", "https://")) else "uri"


def _is_data_url(name: str, value: object) -> bool:
    return name in ("url", "uri") and isinstance(value, str) and value[:5].lower() == "data:"


def parse_attributes(text: str) -> Sequence[Mapping[str, object]]:
    """Parse the attributes of one image, or of each of several.

    Raises:
        AttributeValueError: If the text is not an object or a list of objects in JSON.
    """
    try:
        found = read_json(text.encode())
    except (InputError, UnicodeEncodeError) as error:
        raise AttributeValueError(f"The attributes are not JSON ({error}).") from None
    several = found if isinstance(found, list) else [found]
    if not all(isinstance(one, dict) for one in several):
        raise AttributeValueError(
            'The attributes must be an object, as in {"age": 41}, or a list with one for each '
            "image."
        )
    return several
