"""Decodes an image under its contract: check header, decode, orient, resize, crop.

Training, batch, serving and evaluation all call `decode`, so they cannot differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging.contract import Exact, ImageContract, Letterbox, ShortestSide
from eagleray.imaging.geometry import resized_size
from eagleray.imaging.header import Header
from eagleray.imaging.pillow import open_image
from eagleray.imaging.probe import probe
from eagleray.imaging.tiff import describe_tiff, tiff_layout, with_black_as_zero

__all__ = ["DecodedImage", "check_header", "decode", "decode_upright", "fit"]

Pixels = npt.NDArray[np.uint8]
_Box = tuple[float, float, float, float]

_PILLOW_FILTERS = {
    "pillow_nearest": Image.Resampling.NEAREST,
    "pillow_bilinear": Image.Resampling.BILINEAR,
    "pillow_bicubic": Image.Resampling.BICUBIC,
    "pillow_lanczos": Image.Resampling.LANCZOS,
}
_OPENCV_FILTERS = {"opencv_linear": cv2.INTER_LINEAR, "opencv_area": cv2.INTER_AREA}
_PILLOW_MODES = {"rgb": "RGB", "gray": "L"}
_MAX_SCANS = 100  # like libtiff; cameras and optimizers write about ten
_MAX_SCANNED_PIXELS = 2**31
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_XMP = ("xmp", "XML:com.adobe.xmp")
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image decoded under its contract.

    Attributes:
        pixels: C-contiguous uint8 array of the contract's shape (height, width, channels).
        width: Width of the upright original in pixels.
        height: Height of the upright original in pixels.
    """

    pixels: Pixels
    width: int
    height: int


def decode(data: bytes, contract: ImageContract) -> DecodedImage:
    """Decode an image into the array that the contract describes.

    Raises:
        BadImageError: If it cannot be decoded. No other exception is raised.
    """
    header = check_header(data, contract)
    with _as_bad_images(data, header):
        upright, width, height = _decode_upright(data, header, contract)
        box = _covered_box(upright, header) if isinstance(contract.resize, Letterbox) else None
        pixels = _crop(_resize(upright, width, height, contract, box), contract)
    return DecodedImage(pixels, width, height)


def decode_upright(data: bytes, contract: ImageContract) -> DecodedImage:
    """Decode an image at its own size, in the contract's colours and within its limits.

    Returns:
        The image with its pixels as a uint8 array (height, width, channels).

    Raises:
        BadImageError: If it cannot be decoded. No other exception is raised.
    """
    header = check_header(data, contract)
    sides = (header.height, header.width)
    height, width = sides[::-1] if header.orientation >= 5 else sides
    # Larger than the sides of a contract may be, which are those of a network's input.
    size = Exact.model_construct(mode="exact", height=height, width=width)
    whole = contract.model_copy(update={"resize": size, "crop": None})
    with _as_bad_images(data, header):
        upright, width, height = _decode_upright(data, header, whole)
        pixels = np.ascontiguousarray(upright).reshape(height, width, contract.channels)
    return DecodedImage(pixels, width, height)


def fit(pixels: Pixels, contract: ImageContract) -> Pixels:
    """Resize and crop decoded pixels (height, width, channels) as the contract says."""
    height, width = pixels.shape[:2]
    return _crop(_resize(pixels, width, height, contract), contract)


@contextlib.contextmanager
def _as_bad_images(data: bytes, header: Header) -> Iterator[None]:
    """Turn whatever a decoder raises into an error of the image."""
    try:
        yield
    except BadImageError:
        raise
    except MemoryError as error:
        raise BadImageError(
            Reason.OUT_OF_MEMORY, f"no memory for {header.width} x {header.height} pixels"
        ) from error
    except Exception as error:  # hostile bytes can make decoders raise anything
        raise _as_bad_image(error, data, header) from error


def check_header(data: bytes, contract: ImageContract) -> Header:
    """Read an image's header and check it against the contract, before memory is allocated.

    Raises:
        BadImageError: With reason `too_many_bytes`, `too_many_pixels`, or one of `probe`.
    """
    if len(data) > contract.max_bytes:
        raise BadImageError(
            Reason.TOO_MANY_BYTES,
            f"the file has {len(data):,} bytes, the limit is {contract.max_bytes:,}",
        )
    header = probe(data, contract.formats)
    _check_num_pixels(header.width, header.height, contract)
    _check_num_scans(header)
    return header


def _check_num_pixels(width: int, height: int, contract: ImageContract) -> None:
    if width * height > contract.max_pixels:
        raise BadImageError(
            Reason.TOO_MANY_PIXELS,
            f"the header claims {width:,} x {height:,} pixels, the limit is "
            f"{contract.max_pixels:,} in all",
        )


def _check_num_scans(header: Header) -> None:
    """Reject a small JPEG that would keep its decoder busy for minutes."""
    max_scans = min(_MAX_SCANS, _MAX_SCANNED_PIXELS // (header.width * header.height))
    if header.scans > max_scans:
        raise BadImageError(
            Reason.UNREADABLE,
            f"the JPEG has {header.scans:,} scans of {header.width:,} x {header.height:,} pixels, "
            f"{max_scans} is the limit",
        )


_UNSUPPORTED_PHRASES = ("unsupported", "not supported", "unknown pixel mode", "cannot handle")
_TRUNCATED_PHRASES = ("truncated", "premature end of jpeg file", "end of file", "end-of-file")


def _as_bad_image(error: Exception, data: bytes, header: Header) -> BadImageError:
    """Translate an exception of a decoder."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(Reason.TOO_MANY_PIXELS, text)
    lowered = text.lower()
    if "insufficient memory" in lowered:
        return BadImageError(Reason.OUT_OF_MEMORY, f"no memory to decode it ({text})")
    if any(phrase in lowered for phrase in _UNSUPPORTED_PHRASES):
        kind = f" of {describe_tiff(data)}" if header.format == "tiff" else ""
        return BadImageError(
            Reason.UNSUPPORTED_FORMAT, f"a {header.format}{kind} is not read ({text})"
        )
    if "EOF" in text or any(phrase in lowered for phrase in _TRUNCATED_PHRASES):
        return BadImageError(Reason.TRUNCATED, f"the {header.format} data end early ({text})")
    return BadImageError(Reason.UNREADABLE, f"the {header.format} data are damaged ({text})")


# --- decode ----------------------------------------------------------------------------------


def _decode_upright(
    data: bytes, header: Header, contract: ImageContract
) -> tuple[Pixels | Image.Image, int, int]:
    """Return the upright image in the contract's colours, and its original width and height."""
    # simplejpeg does not convert from CMYK, and rejects unusual headers.
    pixels = None
    if header.format == "jpeg" and header.components != 4:
        pixels = _decode_jpeg(data, header, contract)
    if pixels is None:
        image = _decode_with_pillow(data, header, contract)
        return image, image.width, image.height
    width, height = header.width, header.height
    if header.orientation >= 5:
        width, height = height, width
    return _apply_orientation(pixels, header.orientation), width, height


_STRAY_BYTES_BEFORE_END = "extraneous bytes before marker 0xd9"
_UNUSUAL_HEADERS = (
    "tjDecompressHeader",
    "Invalid SOS parameters",
    "unknown JFIF revision",
    "Unknown Adobe color transform",
    "extraneous bytes before marker 0xdb",  # tables and frames precede the data
    "extraneous bytes before marker 0xc0",
    "extraneous bytes before marker 0xc2",
)


def _decode_jpeg(data: bytes, header: Header, contract: ImageContract) -> Pixels | None:
    """Decode with libjpeg-turbo; None for a valid but unusual header, which is left to Pillow.

    Stray bytes before the end marker are common, and every tool accepts them. Any other warning
    about the data means that pixels are wrong, and is an error.
    """
    options: dict[str, Any] = {"colorspace": "RGB" if contract.color == "rgb" else "GRAY"}
    if contract.jpeg == "scaled":
        height, width = _size_needed(header, contract)
        options |= {
            "min_height": height,
            "min_width": width,
            "min_factor": 1,
            "fastdct": True,
            "fastupsample": True,
        }
    pixels: Pixels
    try:
        pixels = simplejpeg.decode_jpeg(data, strict=True, **options)
    except ValueError as error:
        warning = str(error)
        if any(phrase in warning for phrase in _UNUSUAL_HEADERS):
            return None
        if _STRAY_BYTES_BEFORE_END not in warning:
            raise
        pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
    return pixels


def _size_needed(header: Header, contract: ImageContract) -> tuple[int, int]:
    """Return the smallest stored (height, width) that the resize does not upscale."""
    if not isinstance(contract.resize, ShortestSide):
        turned = header.orientation >= 5
        upright = (header.height, header.width) if turned else (header.width, header.height)
        height, width = resized_size(contract, *upright)
        return (width, height) if turned else (height, width)
    shorter = min(header.height, header.width)
    size = contract.resize.size
    return -(-header.height * size // shorter), -(-header.width * size // shorter)


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1 to 8) to stored pixels."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode_with_pillow(data: bytes, header: Header, contract: ImageContract) -> Image.Image:
    layout = tiff_layout(data) if header.format == "tiff" else None
    negative = layout is not None and layout.white_is_zero and layout.bits > 8
    if negative:
        data = with_black_as_zero(data)
    with open_image(data, header.format, layout) as image:
        _check_num_pixels(image.width, image.height, contract)
        image.load()
        for name in _XMP:  # it has an orientation too, but viewers use EXIF only
            image.info.pop(name, None)
        if header.format == "png" and data[24] == 16:
            _reduce_transparent_color(image)
        upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP_MODES:
        bits = 16 if layout is None else layout.bits
        upright = _as_8_bits(upright, bits, contract)
        upright = ImageOps.invert(upright) if negative else upright
    return _convert(upright, contract)


def _reduce_transparent_color(image: Image.Image) -> None:
    """Reduce the transparent colour of 16-bit RGB to 8 bits, as Pillow reduces the pixels."""
    color = image.info.get("transparency")
    if isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)


def _convert(image: Image.Image, contract: ImageContract) -> Image.Image:
    """Convert any 8-bit mode of Pillow to the contract's colours."""
    if contract.alpha != "drop" and (image.mode in _WITH_ALPHA or "transparency" in image.info):
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", foreground.size, contract.alpha)
        image = Image.alpha_composite(background, foreground)
    mode = _PILLOW_MODES[contract.color]
    return image if image.mode == mode else image.convert(mode)


def _as_8_bits(image: Image.Image, bits: int, contract: ImageContract) -> Image.Image:
    """Convert one channel of more than 8 bits to 8 bits, by the contract's range if it has one.

    Without a range the highest 8 bits are kept, as decoders do for 16-bit colour. Pillow's own
    conversion clips at 255, which would turn nearly every such image white.
    """
    values = np.asarray(image)
    if contract.value_range is not None:
        low, high = contract.value_range
        scaled = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
        reduced = np.rint(np.nan_to_num(scaled)).astype(np.uint8)
    elif image.mode in ("I", "F"):
        kind = "32-bit floating-point" if image.mode == "F" else "32-bit or signed"
        raise BadImageError(
            Reason.UNSUPPORTED_FORMAT,
            f"{kind} pixels have no defined range; save as 8 or 16 bits, or give the model's image "
            "contract a value_range",
        )
    else:
        reduced = (values >> (min(bits, 16) - 8)).astype(np.uint8)
    result = Image.fromarray(reduced)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


# --- resize and crop -------------------------------------------------------------------------


def _covered_box(image: Pixels | Image.Image, header: Header) -> _Box | None:
    """Return the box of a decoded JPEG that the original covers; None if it covers all of it.

    An image that is decoded at k eighths has a last column and row of which a part lies beyond the
    original. They are the first ones after some orientations.
    """
    if isinstance(image, Image.Image):
        return None
    rows, columns = image.shape[:2]
    turned, orientation = header.orientation >= 5, header.orientation
    full = (header.height, header.width) if turned else (header.width, header.height)
    for eighths in range(1, 8):
        if all(
            -(-side * eighths // 8) == found
            for side, found in zip(full, (columns, rows), strict=True)
        ):
            across, down = (side * eighths / 8 for side in full)
            left = columns - across if orientation in (2, 3, 6, 7) else 0.0
            top = rows - down if orientation in (3, 4, 7, 8) else 0.0
            return left, top, left + across, top + down
    return None


def _resize(
    image: Pixels | Image.Image,
    width: int,
    height: int,
    contract: ImageContract,
    box: _Box | None = None,
) -> Pixels:
    target_height, target_width = resized_size(contract, width, height)
    if target_width * target_height > contract.max_pixels:  # a thin strip is upscaled
        raise BadImageError(
            Reason.TOO_MANY_PIXELS,
            f"the image of {width:,} x {height:,} pixels would be resized to {target_width:,} x "
            f"{target_height:,}, the limit is {contract.max_pixels:,} in all",
        )
    if contract.resampler in _PILLOW_FILTERS:
        picture = image if isinstance(image, Image.Image) else _to_pillow(image)
        if picture.size != (target_width, target_height) or box is not None:
            picture = picture.resize(
                (target_width, target_height), _PILLOW_FILTERS[contract.resampler], box=box
            )
        pixels = np.asarray(picture)
    else:
        pixels = np.asarray(image)
        if pixels.shape[:2] != (target_height, target_width):
            pixels = cv2.resize(
                pixels,
                (target_width, target_height),
                interpolation=_OPENCV_FILTERS[contract.resampler],
            ).astype(np.uint8, copy=False)
    return pixels.reshape(target_height, target_width, contract.channels)


def _to_pillow(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _crop(pixels: Pixels, contract: ImageContract) -> Pixels:
    """Crop the centre with the rounding and padding of torchvision's `center_crop`.

    A letterbox, which is never larger than the input, is padded by the same rule.
    """
    height, width = contract.size
    rows, columns = pixels.shape[:2]
    if rows < height or columns < width:
        fill = contract.resize.fill if isinstance(contract.resize, Letterbox) else 0
        top, left = max(height - rows, 0) // 2, max(width - columns, 0) // 2
        padded = np.full((max(rows, height), max(columns, width), pixels.shape[2]), fill, np.uint8)
        padded[top : top + rows, left : left + columns] = pixels
        pixels = padded
        rows, columns = pixels.shape[:2]
    top, left = round((rows - height) / 2.0), round((columns - width) / 2.0)
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
