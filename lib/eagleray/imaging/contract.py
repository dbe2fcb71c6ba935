"""Defines the image contract: everything between encoded bytes and a model's input tensor.

A contract is a frozen value with a canonical JSON form, whose SHA-256 digest identifies it. The
digest is stored with the model and with every prediction, and a model rejects any other contract.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from eagleray.core.errors import ContractError, UnknownNameError
from eagleray.core.validation import first_validation_error

__all__ = [
    "FORMATS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NAMED_CONTRACTS",
    "ORIGINAL_FORMATS",
    "Exact",
    "Format",
    "ImageContract",
    "Letterbox",
    "ShortestSide",
    "canonical_json",
    "named_contract",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DEFAULT_MAX_BYTES = 128 * 2**20
DEFAULT_MAX_PIXELS = 128 * 2**20  # above the 102 megapixels of the largest common cameras
MAX_PIXELS = 178_956_970  # Pillow opens no larger images
MAX_BYTES = 2**31
MAX_INPUT_PIXELS = 4096 * 4096
"""Maximum number of pixels of a network's input and of a resized image. The largest in use are
mammograms of 2944 x 1920 pixels; photographs have sides of 224 to 800 pixels."""

Side = Annotated[int, Field(ge=1, le=8192)]
Color = Literal["rgb", "gray"]
Format = Literal["jpeg", "png", "webp", "gif", "tiff", "bmp", "heic", "avif", "jpeg2000"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""All supported formats."""
ORIGINAL_FORMATS: tuple[Format, ...] = FORMATS[:6]
"""Default formats of a contract; contracts without `formats` predate the other ones."""
Resampler = Literal[
    "pillow_nearest",
    "pillow_bilinear",
    "pillow_bicubic",
    "pillow_lanczos",
    "opencv_linear",
    "opencv_area",
]


def canonical_json(value: Any) -> str:
    """Return the canonical JSON form of a value: sorted keys, no spaces, ASCII, finite numbers."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShortestSide(_Frozen):
    """Resize so that the shorter side has `size` pixels, with the aspect ratio kept.

    The longer side is `int(size * longer / shorter)`, as torchvision computes it.
    """

    mode: Literal["shortest_side"] = "shortest_side"
    size: Side


class Exact(_Frozen):
    """Resize to exactly `height` by `width` pixels, whatever the aspect ratio."""

    mode: Literal["exact"] = "exact"
    height: Side
    width: Side


class Letterbox(_Frozen):
    """Resize with the aspect ratio kept until the image just fits into `height` by `width` pixels.

    The image is centred, and the rest is filled; nothing is cut off.

    Attributes:
        fill: Value of the pixels beside the image.
    """

    mode: Literal["letterbox"] = "letterbox"
    height: Side
    width: Side
    fill: Annotated[int, Field(ge=0, le=255)] = 114


class ImageContract(_Frozen):
    """How encoded bytes become the input tensor of a model.

    The decoded image is a uint8 array (height, width, channels); the model's input is
    `(image / 255 - mean) / std` for each channel.

    Attributes:
        version: Version of the contract's JSON form.
        formats: Accepted formats; images of other formats fail with `unsupported_format`.
        color: `rgb` gives three channels, `gray` one (ITU-R 601 luma).
        orientation: Always `exif`: the EXIF orientation is applied.
        value_range: Values (low, high) that are mapped to 0 and 255, for images of one channel with
            more than 8 bits; values beyond are clipped. None keeps the highest 8 of 16 bits, and
            rejects pixels without a defined range (signed, 32-bit and floating-point ones).
        alpha: How transparency is handled: `drop` discards the alpha channel, as most tools do;
            `white` and `black` composite the image over that colour.
        resize: The resize operation.
        crop: Size (height, width) of the centre crop after the resize, padded with zeros if the
            image is smaller; None for no crop.
        resampler: Library and filter of the resize. The filters of Pillow antialias.
        jpeg: `exact` decodes every pixel with the accurate inverse DCT; `scaled` lets the decoder
            downscale by eighths (never below the target size) with its fast inverse DCT.
        max_bytes: Maximum size of an encoded image.
        max_pixels: Maximum width times height according to the header.
        mean: Mean of each channel, in units of full scale (0 to 1).
        std: Standard deviation of each channel, in units of full scale (0 to 1).
        dtype: Data type of the decoded image.
        layout: Memory layout of the decoded image.
    """

    version: Literal[1] = 1
    formats: tuple[Format, ...] = ORIGINAL_FORMATS
    color: Color = "rgb"
    orientation: Literal["exif"] = "exif"
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    alpha: Literal["drop", "white", "black"] = "drop"
    resize: ShortestSide | Exact | Letterbox = Field(discriminator="mode")
    crop: tuple[Side, Side] | None = None
    resampler: Resampler = "pillow_bilinear"
    jpeg: Literal["exact", "scaled"] = "exact"
    max_bytes: Annotated[int, Field(ge=1, le=MAX_BYTES)] = DEFAULT_MAX_BYTES
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["HWC"] = "HWC"

    @model_serializer(mode="wrap")
    def _omit_unset_additions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit unset fields that were added later, so that older contracts keep their digests."""
        fields: dict[str, Any] = serialize(self)
        if self.formats == ORIGINAL_FORMATS:
            del fields["formats"]
        if self.value_range is None:
            del fields["value_range"]
        return fields

    @field_validator("formats")
    @classmethod
    def _in_order(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if not formats:
            raise ValueError("name at least one format")
        return tuple(name for name in FORMATS if name in formats)

    @field_validator("value_range")
    @classmethod
    def _ascending(cls, values: tuple[float, float] | None) -> tuple[float, float] | None:
        if values is not None and not values[0] < values[1]:
            raise ValueError("the first value must be below the second")
        return None if values is None else (values[0] + 0.0, values[1] + 0.0)

    @field_validator("mean", "std")
    @classmethod
    def _finite(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(math.isfinite(value) for value in values):
            raise ValueError("every value must be a finite number")
        return tuple(value + 0.0 for value in values)  # -0.0 becomes 0.0, for one JSON form

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} values, but color {self.color!r} has "
                    f"{self.channels} channels"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError("std must be above 0 for every channel")
        if isinstance(self.resize, ShortestSide) and self.crop is None:
            raise ValueError("resize to the shortest side needs a crop, to give every image a size")
        if isinstance(self.resize, Letterbox) and self.crop is not None:
            raise ValueError("a letterbox has no crop: it keeps the whole image")
        _check_input_size(*self.size)
        if isinstance(self.resize, ShortestSide):
            _check_input_size(self.resize.size, self.resize.size)
        else:
            _check_input_size(self.resize.height, self.resize.width)
        return self

    @property
    def channels(self) -> int:
        """Number of channels of the decoded image."""
        return 3 if self.color == "rgb" else 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the decoded image in pixels."""
        if self.crop is not None:
            return self.crop
        assert not isinstance(self.resize, ShortestSide)
        return self.resize.height, self.resize.width

    @property
    def keeps_whole_image(self) -> bool:
        """Whether nothing of an image is cut off, so that every place of it is in the input."""
        return self.crop is None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the decoded uint8 array: (height, width, channels)."""
        return (*self.size, self.channels)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON form."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str) -> ImageContract:
        """Read a contract from JSON.

        Raises:
            ContractError: If it is invalid; the message names the field.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ContractError(
                f"The image contract is not valid: {first_validation_error(error)}."
            ) from None


def _check_input_size(height: int, width: int) -> None:
    if height * width > MAX_INPUT_PIXELS:
        raise ValueError(
            f"images of {height:,} x {width:,} pixels are too large for a network; "
            f"{MAX_INPUT_PIXELS:,} pixels is the limit"
        )


_MEAN = {"rgb": IMAGENET_MEAN, "gray": (0.5,)}
_STD = {"rgb": IMAGENET_STD, "gray": (0.5,)}


_Maker = Callable[[int, int, Color], "ImageContract"]


def _cropped(resampler: Resampler, jpeg: Literal["exact", "scaled"]) -> _Maker:
    def make(size: int, resize: int, color: Color) -> ImageContract:
        return ImageContract(
            color=color,
            resize=ShortestSide(size=resize),
            crop=(size, size),
            resampler=resampler,
            jpeg=jpeg,
            mean=_MEAN[color],
            std=_STD[color],
        )

    return make


def _whole(fit: type[Exact] | type[Letterbox], jpeg: Literal["exact", "scaled"]) -> _Maker:
    def make(size: int, _resize: int, color: Color) -> ImageContract:
        return ImageContract(
            color=color,
            resize=fit(height=size, width=size),
            resampler="pillow_bilinear",
            jpeg=jpeg,
            mean=_MEAN[color],
            std=_STD[color],
        )

    return make


NAMED_CONTRACTS: dict[str, _Maker] = {
    "torchvision-reference": _cropped("pillow_bilinear", "exact"),
    "fast": _cropped("opencv_linear", "scaled"),
    "whole-image": _whole(Exact, "exact"),
    "letterbox": _whole(Letterbox, "scaled"),
}


def named_contract(
    name: str,
    *,
    size: int = 224,
    resize: int | None = None,
    color: Color = "rgb",
    formats: tuple[Format, ...] = ORIGINAL_FORMATS,
) -> ImageContract:
    """Return a predefined contract.

    Args:
        name: `torchvision-reference` gives the tensors of torchvision's evaluation transform;
            `fast` has the same geometry with a scaled JPEG decode and OpenCV's linear filter;
            `whole-image` resizes to a square without a crop; `letterbox` keeps the aspect ratio
            and fills what is left of the square.
        size: Side of the result in pixels.
        resize: Shorter side before the crop; by default `size` * 256 / 224. `whole-image` and
            `letterbox` ignore it.
        color: `rgb` or `gray`.
        formats: Accepted formats. The default keeps the digests of existing contracts; models are
            trained with `FORMATS`.

    Raises:
        UnknownNameError: If no contract has that name.
        ContractError: If the sizes are invalid.
    """
    if name not in NAMED_CONTRACTS:
        known = ", ".join(NAMED_CONTRACTS)
        raise UnknownNameError("image contract", name, NAMED_CONTRACTS, hint=f"Known: {known}.")
    if color not in _MEAN:
        raise ContractError(f"Contract {name!r}: color is rgb or gray, not {color!r}.")
    shorter_side = round(size * 256 / 224) if resize is None else resize
    try:
        contract = NAMED_CONTRACTS[name](size, shorter_side, color)
        return ImageContract.model_validate({**contract.model_dump(), "formats": formats})
    except ValidationError as error:
        raise ContractError(f"Contract {name!r}: {first_validation_error(error)}.") from None
