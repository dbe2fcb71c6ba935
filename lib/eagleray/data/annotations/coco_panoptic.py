"""Reads COCO's panoptic segments: JSON, and a PNG for each image with the ids of its pixels.

    annotations/panoptic_val2017.json       images, categories with `isthing`, and `segments_info`
    annotations/panoptic_val2017/1.png      id = red + 256 * green + 65536 * blue; 0: no segment

Pixels of no segment are void: neither right nor wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from eagleray.core.errors import BadImageError
from eagleray.core.validation import first_validation_error
from eagleray.data.annotations.coco import CocoFile, CocoImage, Id, Listed
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import Folder, read_small
from eagleray.data.annotations.image_sizes import ANY_IMAGE
from eagleray.data.annotations.masks import masks_of_indices
from eagleray.data.annotations.objects import ObjectCollector
from eagleray.data.annotations.read_files import THREADS, AnnotatedImage
from eagleray.imaging import check_header
from eagleray.imaging.pillow import open_image
from eagleray.io.read_ahead import read_ahead
from eagleray.io.storage import FileInfo
from eagleray.tasks.annotation import Mask

__all__ = ["SEGMENTS", "VOID", "PanopticFile"]

SEGMENTS = b'"segments_info"'
"""What such a file has, and one of objects has not."""

VOID = 0
"""Id of the pixels of no segment."""

_COLOR_MODES = ("RGB", "RGBA")
_MAX_ID = 256**3 - 1


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Segment(_Entry):
    id: Annotated[int, Field(ge=1, le=_MAX_ID)]
    category_id: Id
    iscrowd: Literal[0, 1, False, True] = 0


class _Segments(_Entry):
    image_id: Id
    file_name: Annotated[str, Field(min_length=1, max_length=4096)]
    segments_info: list[_Segment]


_SEGMENTS = TypeAdapter(_Segments)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image with what its PNG has.

    Attributes:
        listed: The image and its annotations.
        size: Height and width of the PNG in pixels.
        masks: The mask of each id in the PNG.
        fault: Why the PNG is refused; None if it is not.
    """

    listed: Listed
    size: tuple[int, ...] = (0, 0)
    masks: Mapping[int, Mask] = field(default_factory=dict)
    fault: str | None = None


class PanopticFile(CocoFile):
    """One file of COCO's panoptic JSON, with its folder of PNGs."""

    def __init__(self, folder: Folder, path: str, content: bytes, faults: AnnotationFaults) -> None:
        super().__init__(folder, path, content, faults)
        self._folder, self._bases = folder, list(_folders_of_masks(path))

    def _entries_by_image(self) -> dict[Id, list[Any]]:
        """Return the segments of each image, or why they cannot be read."""
        found: dict[Id, list[Any]] = defaultdict(list)
        for number, entry in enumerate(self._fields["annotations"]):
            try:
                item = _SEGMENTS.validate_python(entry)
            except ValidationError as error:
                place = f"{self._place}, annotation {number}: {first_validation_error(error)}"
                self._faults.add(FaultKind.UNREADABLE_FILE, place)
                continue
            found[item.image_id].append((number, item))
        return found

    def _annotated_images(
        self, listed: Iterator[Listed], names: Mapping[Id, str]
    ) -> Iterator[AnnotatedImage | None]:
        """Yield each image with its segments, whose PNGs threads read a few images ahead."""
        for one in read_ahead(self._load, listed, threads=THREADS, max_ahead=2 * THREADS):
            yield self._with_segments(one, names)

    def _load(self, listed: Listed) -> _Loaded:
        """Read the PNG of an image, in a thread."""
        if len(listed.items) != 1:
            return _Loaded(listed)
        ((_, item),) = listed.items
        try:
            ids = self._ids(item)
            _require_size(ids, listed.image)
            masks = masks_of_indices(ids)
            _require_segments(set(masks) - {VOID}, item)
            return _Loaded(listed, ids.shape, masks)
        except BadImageError as error:
            return _Loaded(listed, fault=error.message)
        except ValueError as error:
            return _Loaded(listed, fault=str(error))

    def _with_segments(self, loaded: _Loaded, names: Mapping[Id, str]) -> AnnotatedImage | None:
        image, items, place = loaded.listed
        file = self._find(image)
        if file is None:
            self._faults.add(FaultKind.NO_IMAGE, place)
            return None
        if len(items) != 1:
            fault = FaultKind.UNREADABLE_FILE if items else FaultKind.NO_ANNOTATION
            self._faults.add(fault, f"{place}: it has {len(items)} annotations, not one")
            return None
        ((number, item),) = items
        where = f"{self._place}, annotation {number} ({item.file_name})"
        if loaded.fault is not None:
            self._faults.add(FaultKind.UNREADABLE_FILE, f"{where}: {loaded.fault}")
            return None
        height, width = loaded.size
        objects = ObjectCollector(width, height, self._faults)
        used = []
        for segment in item.segments_info:
            label = names.get(segment.category_id)
            own = f"{where}, segment {segment.id}"
            if label is None:
                category = str(segment.category_id)[:40]
                objects.reject(FaultKind.UNKNOWN_LABEL, f"{own}: category_id {category}")
                continue
            crowd, kind = bool(segment.iscrowd), self._kinds.get(label)
            mask = loaded.masks[segment.id]
            objects.add(label, None, own, crowd=crowd, mask=mask, kind=kind)
            used.append(label)
        void = loaded.masks.get(VOID)
        if void is not None and names:  # of whatever label: nothing is said of it
            label = next(iter([*used, *names.values()]))
            objects.add(label, None, f"{where}, void", crowd=True, mask=void, kind="void")
        annotation = objects.annotation(place)
        return None if annotation is None else AnnotatedImage(file, annotation, self._images.group)

    def _ids(self, item: _Segments) -> npt.NDArray[np.int32]:
        """Return the id of the segment of each pixel (height, width).

        Raises:
            BadImageError: If the PNG is too large, or no PNG.
            ValueError: If there is none, it has no colours, or is damaged.
        """
        content = read_small(self._mask(item.file_name).uri, ANY_IMAGE.max_bytes)
        header = check_header(content, ANY_IMAGE)
        if header.format != "png":
            raise ValueError(f"it is a {header.format} and not a PNG")
        try:
            with open_image(content, "png") as opened:
                mode, pixels = opened.mode, np.asarray(opened)
        except Exception as error:
            raise ValueError(f"it is damaged ({' '.join(str(error).split())[:200]})") from error
        if mode not in _COLOR_MODES:
            raise ValueError(f"it has no colours ({mode}), which ids are read from")
        red, green, blue = (pixels[..., place].astype(np.int32) for place in range(3))
        return np.asarray(red + 256 * green + 65536 * blue, np.int32)

    def _mask(self, file_name: str) -> FileInfo:
        name = file_name.replace("\\", "/").removeprefix("./").lstrip("/")
        found = (f"{base}{name}" for base in self._bases)
        file = next(
            (self._folder.files[path] for path in found if path in self._folder.files), None
        )
        if file is None:
            searched = ", ".join(base.rstrip("/") or "." for base in self._bases)
            raise ValueError(f"there is no such PNG in {searched}")
        return file


def _folders_of_masks(path: str) -> Iterator[str]:
    """Yield the folders that may have the PNGs of a JSON file, each with a slash or empty."""
    own, _, name = path.rpartition("/")
    above = own.rpartition("/")[0]
    stem = name.rpartition(".")[0]
    for folder in dict.fromkeys((own, above)):
        start = f"{folder}/" if folder else ""
        yield from (f"{start}{stem}/", f"{start}panoptic/", start)


def _require_size(ids: npt.NDArray[np.int32], image: CocoImage) -> None:
    """Refuse a PNG of another size than its image.

    Raises:
        ValueError: If it is refused; the message completes a sentence about the PNG.
    """
    height, width = ids.shape
    if image.width and image.height and (width, height) != (image.width, image.height):
        raise ValueError(
            f"its PNG has {width} x {height} pixels, and its image {image.width} x {image.height}"
        )


def _require_segments(seen: set[int], item: _Segments) -> None:
    """Refuse a PNG with other segments than the JSON has.

    Args:
        seen: Ids of the segments in the PNG.
        item: What the JSON has.

    Raises:
        ValueError: If it is refused; the message completes a sentence about the PNG.
    """
    listed = [segment.id for segment in item.segments_info]
    if len(set(listed)) < len(listed):
        raise ValueError("two of its segments have the same id")
    if seen - set(listed):
        raise ValueError(f"its PNG has the segment {min(seen - set(listed))}, and the JSON has not")
    if set(listed) - seen:
        raise ValueError(f"the JSON has the segment {min(set(listed) - seen)}, and its PNG has not")
