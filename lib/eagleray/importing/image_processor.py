"""Reads what an image processor of transformers does to images, as the fields of an import.

A processor that resizes to one size has an exact counterpart. One that keeps the aspect ratio
(`shortest_edge`) gives every image another size, and a network of one size is taken: its images are
stretched to a square, or put into one with their aspect ratio (`letterbox`), which is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.importing.spec import ImportSpec

__all__ = ["PREPROCESSOR", "ImageProcessor", "listed", "read_image_processor", "whole_number"]

PREPROCESSOR = "preprocessor_config.json"

_PROCESSOR_ENDS = ("", "Fast", "Pil")
_RESAMPLERS = {
    0: "pillow_nearest",
    1: "pillow_lanczos",
    2: "pillow_bilinear",
    3: "pillow_bicubic",
}
_STEPS = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"}
_STEPS_OF_LABELS = {"do_convert_annotations", "do_reduce_labels"}
_MAX_SIDE = 8192
_EDGES = {"shortest_edge", "longest_edge"}
_OF_SQUARES = ("RTDetr", "Segformer")  # beginnings of processors whose size may be one number
_GEOMETRY = ("image_size", "stretch", "letterbox", "fill")


@dataclass(frozen=True)
class ImageProcessor:
    """What an image processor does.

    Attributes:
        fields: Fields of the specification that say it.
        difference: How images of the import differ from its, as a sentence; empty if they do not.
    """

    fields: Mapping[str, Any]
    difference: str = ""


@dataclass(frozen=True)
class _Geometry:
    """How images come to the size of the input.

    Attributes:
        side: Height and width of the input in pixels.
        letterbox: Whether the aspect ratio is kept; images are stretched otherwise.
        difference: As that of `ImageProcessor`.
    """

    side: int
    letterbox: bool = False
    difference: str = ""


def read_image_processor(
    images: Mapping[str, Any], processors: Sequence[str], spec: ImportSpec
) -> ImageProcessor:
    """Read what the network's image processor does.

    Args:
        images: Its configuration.
        processors: Its classes that are known.
        spec: The import, whose size and geometry count where the processor's depend on the image.

    Raises:
        ValueError: If a step has no counterpart; the message completes a sentence about the folder.
    """
    kind = images.get("image_processor_type", images.get("feature_extractor_type"))
    if kind not in [name + end for name in processors for end in _PROCESSOR_ENDS]:
        raise ValueError(f"{PREPROCESSOR} is of a {kind}, not of {listed(processors)}")
    others = {name for name, value in images.items() if name.startswith("do_") and value}
    others -= _STEPS | _STEPS_OF_LABELS
    if others:
        raise ValueError(f"{PREPROCESSOR} has {', '.join(sorted(others))}, which is not known")
    size = _size(images, is_square=str(kind).startswith(_OF_SQUARES))
    if "shortest_edge" in size:
        geometry = _geometry_of_edges(size, images, spec)
    else:
        geometry = _geometry_of_one_size(size, images, spec)
    resampler = _RESAMPLERS.get(images.get("resample", 2))
    if resampler is None:
        raise ValueError(f"{PREPROCESSOR} has the resample {images['resample']!r}, not 0 to 3")
    mean, std = _normalisation(images)
    fields = {
        "stretch": not geometry.letterbox,
        "letterbox": geometry.letterbox,
        "image_size": geometry.side,
        "resampler": resampler,
        "mean": ",".join(map(repr, mean)),
        "std": ",".join(map(repr, std)),
    }
    return ImageProcessor(fields, geometry.difference)


def _size(images: Mapping[str, Any], *, is_square: bool) -> dict[str, Any]:
    """Return the size as `height` and `width`, or as `shortest_edge` and perhaps `longest_edge`.

    Earlier versions of transformers have written a number, and `max_size` beside it.
    """
    size = images.get("size")
    if isinstance(size, int) and not isinstance(size, bool):
        longest = images.get("max_size")
        edges = {"shortest_edge": size, **({} if longest is None else {"longest_edge": longest})}
        size = {"height": size, "width": size} if is_square else edges
    if not images.get("do_resize", True) or not isinstance(size, dict):
        raise ValueError(f"{PREPROCESSOR} does not resize images to one size")
    if set(size) != {"height", "width"} and not {"shortest_edge"} <= set(size) <= _EDGES:
        raise ValueError(
            f"{PREPROCESSOR} has the size {json.dumps(size)[:100]}, and height and width, or "
            "shortest_edge with or without longest_edge, are known"
        )
    return size


def _geometry_of_one_size(
    size: Mapping[str, Any], images: Mapping[str, Any], spec: ImportSpec
) -> _Geometry:
    for name in _GEOMETRY:
        if getattr(spec, name) != ImportSpec.model_fields[name].default:
            raise ValueError(
                f"{PREPROCESSOR} says how images come to their size; leave {spec.name_of(name)} out"
            )
    height, width = (whole_number(size, name, _MAX_SIDE) for name in ("height", "width"))
    if height != width:
        raise ValueError(f"{PREPROCESSOR} has images of {height} x {width}, not square ones")
    if images.get("pad_size") not in (None, size):
        raise ValueError(f"{PREPROCESSOR} pads images after the resize (pad_size)")
    divisor = _divisor(images)
    if height % divisor:
        raise ValueError(f"{PREPROCESSOR} pads images after the resize (size_divisor {divisor})")
    return _Geometry(height)


def _geometry_of_edges(
    size: Mapping[str, Any], images: Mapping[str, Any], spec: ImportSpec
) -> _Geometry:
    """Return a square in place of sizes that keep the aspect ratio, and say how they differ."""
    if images.get("pad_size") is not None:
        raise ValueError(f"{PREPROCESSOR} pads images after the resize (pad_size)")
    shortest = whole_number(size, "shortest_edge", _MAX_SIDE)
    longest = size.get("longest_edge")
    if longest is not None:
        longest = whole_number(size, "longest_edge", _MAX_SIDE)
    divisor = _divisor(images)
    side = spec.image_size or math.ceil(min(shortest, longest or shortest) / divisor) * divisor
    if side % divisor:
        option = spec.name_of("image_size")
        raise ValueError(f"{option} {side} is no multiple of its size_divisor {divisor}; name one")
    kept = f"a shorter side of {shortest:,} pixels"
    kept += "" if longest is None else f" and at most {longest:,} for the longer one"
    put = "fitted with gray beside them into" if spec.letterbox else "stretched to"
    return _Geometry(
        side,
        spec.letterbox,
        f"Images are {put} {side:,} x {side:,} pixels, and transformers keeps their aspect ratio, "
        f"with {kept}: predictions differ from those of transformers, so evaluate the model.",
    )


def _divisor(images: Mapping[str, Any]) -> int:
    """Return the number that sides are padded to multiples of; 1 for none."""
    divisor = images.get("size_divisor") or images.get("size_divisibility") or 1
    return whole_number({"size_divisor": divisor}, "size_divisor", _MAX_SIDE)


def _normalisation(images: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return what is subtracted from pixels from 0 to 255, and what they are divided by then."""
    factor = images.get("rescale_factor", 1 / 255) if images.get("do_rescale", True) else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if images.get("do_normalize", True):
        mean, std = (images.get(name) for name in ("image_mean", "image_std"))  # type: ignore[assignment]
    for values in ([factor] * 3, mean, std):
        is_list = isinstance(values, list) and len(values) == 3
        if not is_list or not all(isinstance(one, (int, float)) for one in values):
            raise ValueError(f"{PREPROCESSOR} lacks a number for each of three channels")
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"{PREPROCESSOR} has the rescale_factor {factor!r}")
    return [one / factor for one in mean], [one / factor for one in std]


def whole_number(values: Mapping[str, Any], name: str, largest: int) -> int:
    """Return a value that is a whole number from 1 to the largest.

    Raises:
        ValueError: If it is another value.
    """
    number = values.get(name)
    if not isinstance(number, int) or not 1 <= number <= largest:
        raise ValueError(f"{name} is {number!r}, not a whole number from 1 to {largest:,}")
    return number


def listed(names: Any) -> str:
    """Return names as a list in a sentence, such as `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else str(last)
