"""Reads COCO's JSON: boxes, polygons, run lengths of both kinds, crowds, and names of classes.

A file of captions or of results is another form and not read; `coco_panoptic` reads segments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from eagleray.core.errors import BadImageError, InputError
from eagleray.core.json_limits import JsonLimits, parse_json
from eagleray.core.validation import first_validation_error
from eagleray.data.annotations.coco_images import CocoImages
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import Folder
from eagleray.data.annotations.image_sizes import size_of_image
from eagleray.data.annotations.masks import mask_of_polygons, mask_of_runs
from eagleray.data.annotations.objects import ObjectCollector
from eagleray.data.annotations.read_files import AnnotatedImage
from eagleray.data.label_texts import clean_label
from eagleray.io.storage import FileInfo
from eagleray.tasks.annotation import Kind, Mask

__all__ = ["CocoFile", "CocoImage", "Id", "Listed"]

_MAX_VALUES = 200_000_000
_LIMITS = JsonLimits(
    max_values=_MAX_VALUES,
    max_strings=50_000_000,
    max_entries=_MAX_VALUES,
    max_containers=50_000_000,
)

Id = int | str


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class CocoImage(_Entry):
    """An image that a file lists."""

    id: Id
    file_name: Annotated[str, Field(min_length=1, max_length=4096)]
    width: Annotated[int, Field(ge=0)] = 0
    height: Annotated[int, Field(ge=0)] = 0


class Listed(NamedTuple):
    """An image of a file with its annotations.

    Attributes:
        image: The image.
        items: Its annotations.
        place: Where it is listed, for people.
    """

    image: CocoImage
    items: list[Any]
    place: str


class _Category(_Entry):
    id: Id
    name: Annotated[str, Field(min_length=1, max_length=1000)]
    isthing: Literal[0, 1, False, True] | None = None


class _Runs(_Entry):
    size: tuple[int, int]
    counts: str | list[int]


class _Object(_Entry):
    image_id: Id
    category_id: Id
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | tuple[()] | None = None
    segmentation: _Runs | list[list[FiniteFloat]] | None = None
    iscrowd: Literal[0, 1, False, True] = 0


_Numbered = tuple[int, _Object | str]
"""The number of an annotation with what it says, or with why it cannot be read."""

_IMAGE, _CATEGORY, _OBJECT = TypeAdapter(CocoImage), TypeAdapter(_Category), TypeAdapter(_Object)


class CocoFile:
    """One file of COCO's JSON.

    Args:
        folder: The folder of the file and of the images.
        path: Path of the file in it.
        content: The file.
        faults: Counts what cannot be read.

    Attributes:
        listed: Locations of the images that it lists and that are there, once it is read.

    Raises:
        InputError: If it is not of this form.
    """

    def __init__(self, folder: Folder, path: str, content: bytes, faults: AnnotationFaults) -> None:
        self._place, self._faults = folder.place(path), faults
        self._fields = self._parse(content)
        self._images = CocoImages(folder, path, self._fields["images"])
        self._kinds: dict[str, Kind] = {}
        self.listed: set[str] = set()

    def _parse(self, content: bytes) -> dict[str, list[Any]]:
        try:
            fields = parse_json(content, _LIMITS)
        except ValueError as error:
            raise InputError(f"{self._place} is not read as COCO: {error}.") from None
        if not isinstance(fields, dict):
            raise InputError(f"{self._place} is not COCO: it is not a JSON object.")
        lists = {key: fields.get(key) for key in ("images", "annotations", "categories")}
        for key, value in lists.items():
            if not isinstance(value, list):
                raise InputError(f"{self._place} is not COCO: it has no list {key!r}.")
        return {key: list(value or ()) for key, value in lists.items()}

    def read(self) -> list[AnnotatedImage]:
        """Return the images that are there, with their objects."""
        names = self._names()
        objects = self._entries_by_image()
        listed = self._listed(objects)
        found = [one for one in self._annotated_images(listed, names) if one is not None]
        for image_id, left in objects.items():
            for number, _ in left:
                place = f"{self._place}, annotation {number}, image_id {str(image_id)[:40]}"
                self._faults.add(FaultKind.NO_SUCH_IMAGE, place)
        if self._fields["images"] and not found and not self.listed:
            raise InputError(
                f"None of the {len(self._fields['images']):,} images of {self._place} can be read; "
                f"they are searched beside it and in the folder above it: {self._images.searched}."
            )
        return found

    def _listed(self, objects: dict[Id, list[Any]]) -> Iterator[Listed]:
        """Yield the images of the file with their annotations, which are taken out of `objects`."""
        for number, entry in enumerate(self._fields["images"]):
            place = f"{self._place}, image {number}"
            try:
                image = _IMAGE.validate_python(entry)
            except ValidationError as error:
                fault = first_validation_error(error)
                self._faults.add(FaultKind.UNREADABLE_FILE, f"{place}: {fault}")
                continue
            yield Listed(image, objects.pop(image.id, []), f"{place} ({image.file_name})")

    def _annotated_images(
        self, listed: Iterator[Listed], names: Mapping[Id, str]
    ) -> Iterator[AnnotatedImage | None]:
        """Yield each image with its objects; None for one that cannot be read, which is counted."""
        return (self._annotated(*one, names) for one in listed)

    def _find(self, image: CocoImage) -> FileInfo | None:
        file = self._images.find(image.file_name)
        if file is not None:
            self.listed.add(file.uri)
        return file

    def _names(self) -> dict[Id, str]:
        names: dict[Id, str] = {}
        for number, entry in enumerate(self._fields["categories"]):
            try:
                category = _CATEGORY.validate_python(entry)
            except ValidationError as error:
                fault = first_validation_error(error)
                raise InputError(f"{self._place}, category {number}: {fault}.") from None
            label = clean_label(category.name)
            if category.isthing is not None:
                kind: Kind = "thing" if category.isthing else "stuff"
                if self._kinds.setdefault(label, kind) != kind:
                    raise InputError(
                        f"{self._place} has two categories {label!r}, one of things and one of "
                        "stuff; give each its own name."
                    )
            if names.setdefault(category.id, label) != label:
                raise InputError(
                    f"{self._place} has two categories with the id {category.id}: "
                    f"{names[category.id]!r} and {label!r}; give each its own."
                )
        return names

    def _entries_by_image(self) -> dict[Id, list[Any]]:
        """Return the objects of each image, those that cannot be read as their faults."""
        found: dict[Id, list[_Numbered]] = defaultdict(list)
        for number, entry in enumerate(self._fields["annotations"]):
            try:
                item = _OBJECT.validate_python(entry)
            except ValidationError as error:
                fault = first_validation_error(error)
                image_id = entry.get("image_id") if isinstance(entry, dict) else None
                if isinstance(image_id, int | str):
                    found[image_id].append((number, fault))
                else:
                    place = f"{self._place}, annotation {number}: {fault}"
                    self._faults.add(FaultKind.UNREADABLE_OBJECT, place)
                continue
            found[item.image_id].append((number, item))
        return found

    def _annotated(
        self,
        image: CocoImage,
        items: list[_Numbered],
        place: str,
        names: Mapping[Id, str],
    ) -> AnnotatedImage | None:
        file = self._find(image)
        if file is None:
            self._faults.add(FaultKind.NO_IMAGE, place)
            return None
        try:
            has_size = image.width and image.height
            size = (image.width, image.height) if has_size else size_of_image(file)
            objects = ObjectCollector(*size, self._faults)
        except BadImageError as error:
            self._faults.add(FaultKind.UNREADABLE_IMAGE, f"{place}: {error.message}")
            return None
        except ValueError as error:
            self._faults.add(FaultKind.UNREADABLE_FILE, f"{place}: {error}")
            return None
        for number, item in items:
            where = f"{self._place}, annotation {number}"
            if isinstance(item, str):
                objects.reject(FaultKind.UNREADABLE_OBJECT, f"{where}: {item}")
            else:
                self._add(objects, item, names, where)
        annotation = objects.annotation(place)
        if annotation is None:
            return None
        return AnnotatedImage(file, annotation, self._images.group)

    def _add(
        self, objects: ObjectCollector, item: _Object, names: Mapping[Id, str], place: str
    ) -> None:
        label = names.get(item.category_id)
        if label is None:
            where = f"{place}: category_id {str(item.category_id)[:40]}"
            objects.reject(FaultKind.UNKNOWN_LABEL, where)
            return
        if isinstance(item.segmentation, list) and any(len(one) < 6 for one in item.segmentation):
            objects.reject(FaultKind.BAD_POLYGON, place)
            return
        box = item.bbox or None
        if isinstance(item.segmentation, _Runs) and item.segmentation.size != (
            objects.height,
            objects.width,
        ):
            objects.reject(FaultKind.MASK_SIZE, place)
            return
        try:
            mask = _mask(item.segmentation, objects)
        except ValueError as error:
            objects.reject(FaultKind.BAD_MASK, f"{place}: {_message(error)}")
            return
        if box is None and mask is None:
            where = f"{place}: it has neither bbox nor segmentation"
            objects.reject(FaultKind.UNREADABLE_OBJECT, where)
            return
        kind = self._kinds.get(label)
        objects.add(label, box, place, crowd=bool(item.iscrowd), mask=mask, kind=kind)


def _mask(segmentation: _Runs | list[list[float]] | None, objects: ObjectCollector) -> Mask | None:
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return mask_of_polygons(segmentation, objects.height, objects.width)
    if isinstance(segmentation.counts, str):
        return Mask(size=segmentation.size, counts=segmentation.counts)
    return mask_of_runs(segmentation.counts, objects.height, objects.width)


def _message(error: ValueError) -> str:
    return first_validation_error(error) if isinstance(error, ValidationError) else str(error)
