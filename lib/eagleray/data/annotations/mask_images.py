"""Reads masks that are stored as PNGs: of numbered objects, or of numbered classes.

    instances/1.png     0 is background, every other number is one object (8 or 16 bits)
    masks/1.png         0 is background, 255 is ignored, every other number is a class (8 bits)

Each class of a mask of classes becomes one object, as such a mask does not tell objects apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import BadImageError, InputError
from eagleray.data.annotations.class_names import CLASSES_FILE, find_file, read_classes
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import IMAGE_ROLES, Folder, pair_files
from eagleray.data.annotations.image_sizes import ANY_IMAGE
from eagleray.data.annotations.masks import masks_of_indices
from eagleray.data.annotations.objects import ObjectCollector
from eagleray.data.annotations.read_files import AnnotatedImage, LoadedFile, load_files
from eagleray.imaging import check_header
from eagleray.imaging.pillow import open_image

__all__ = ["BACKGROUND", "IGNORED", "find_index_masks", "find_instance_masks"]

BACKGROUND, IGNORED = 0, 255
_DEFAULT_CLASS = "object"
_GRAY = 0  # color type of a PNG
_STRETCHED = {2: 85, 4: 17}  # Pillow multiplies gray values of fewer than 8 bits by these
_INDEX_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})

_Find = Callable[[AnnotationFaults], list[AnnotatedImage]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the numbers of a mask mean.

    Attributes:
        role: Name of the folder of the masks, in lower case.
        one_class: Whether all numbers are objects of one class; numbers of classes else, of which
            `IGNORED` stands for pixels that are neither right nor wrong.
    """

    role: str
    one_class: bool


_INSTANCES = _Layout("instances", one_class=True)
_CLASSES = _Layout("masks", one_class=False)


def find_instance_masks(folder: Folder) -> _Find | None:
    """Return the reader of a folder with PNGs of numbered objects; None for any other folder."""
    return _find(folder, _INSTANCES)


def find_index_masks(folder: Folder) -> _Find | None:
    """Return the reader of a folder with PNGs of numbered classes; None for any other folder."""
    return _find(folder, _CLASSES)


def _find(folder: Folder, layout: _Layout) -> _Find | None:
    files = [
        path
        for path in folder.with_extension(".png")
        if layout.role in path.lower().split("/")[:-1]
        and not IMAGE_ROLES.intersection(path.lower().split("/")[:-1])
    ]
    return (lambda faults: _read(folder, files, layout, faults)) if files else None


def _read(
    folder: Folder, files: list[str], layout: _Layout, faults: AnnotationFaults
) -> list[AnnotatedImage]:
    classes = _classes(folder, layout)
    pairs = []
    for pair in pair_files(folder, files, {layout.role}, faults):
        if pair.labels is None:
            faults.add(FaultKind.NO_ANNOTATION, pair.place)
        else:
            pairs.append(pair)
    found = []
    loaded_files = load_files(pairs, faults, max_bytes=ANY_IMAGE.max_bytes, sized=True)
    for loaded in loaded_files:
        annotated = _annotated(loaded, layout, classes, faults)
        if annotated is not None:
            found.append(annotated)
    return found


def _classes(folder: Folder, layout: _Layout) -> Mapping[int, str] | None:
    """Return the names of the classes by the numbers in masks; None without a list of them.

    Line n of the list is class n, counted from 1; a first of several lines that is `background` is
    class 0.
    """
    path = find_file(folder, CLASSES_FILE)
    if path is None:
        return {0: _DEFAULT_CLASS} if layout.one_class else None
    names = read_classes(folder, path)
    if len(names) == 1 or names[0].strip("_").casefold() != "background":
        names = {index + 1: name for index, name in names.items()}
    names = {index: name for index, name in names.items() if index != BACKGROUND}
    if not layout.one_class:
        return names
    if len(names) != 1:
        raise InputError(
            f"{folder.place(path)} names {len(names)} classes: masks of numbered objects do not "
            "say the class of each, so it has one line; for masks of numbered classes, name their "
            "folder masks."
        )
    return {0: next(iter(names.values()))}


def _annotated(
    loaded: LoadedFile,
    layout: _Layout,
    classes: Mapping[int, str] | None,
    faults: AnnotationFaults,
) -> AnnotatedImage | None:
    assert loaded.size is not None
    place = loaded.file.place
    try:
        masks = masks_of_indices(_indices(loaded.content or b""))
        objects = ObjectCollector(*loaded.size, faults)
    except BadImageError as error:
        faults.add(FaultKind.UNREADABLE_FILE, f"{place}: {error.message}")
        return None
    except ValueError as error:
        faults.add(FaultKind.UNREADABLE_FILE, f"{place}: {error}")
        return None
    masks.pop(BACKGROUND, None)
    ignored = None if layout.one_class else masks.pop(IGNORED, None)
    labels = []
    for number, mask in masks.items():
        where = f"{place}, number {number}"
        label = (
            f"index_{number}" if classes is None else classes.get(number * (not layout.one_class))
        )
        if label is None:
            objects.reject(FaultKind.UNKNOWN_LABEL, where)
        else:
            labels.append(label)
            objects.add(label, None, where, mask=mask)
    labels += [] if classes is None else classes.values()
    if ignored is not None and labels:  # a crowd, of whatever class, is what nothing is said of
        where = f"{place}, number {IGNORED}"
        objects.add(labels[0], None, where, crowd=True, mask=ignored, kind="void")
    annotation = objects.annotation(place)
    return None if annotation is None else loaded.annotated(annotation)


def _indices(content: bytes) -> npt.NDArray[np.integer[Any]]:
    """Return the numbers of a PNG as an array (height, width).

    Raises:
        BadImageError: If it is too large, or no PNG.
        ValueError: If it has colours instead of numbers, or is damaged.
    """
    header = check_header(content, ANY_IMAGE)
    if header.format != "png":
        raise ValueError(f"it is a {header.format} and not a PNG")
    try:
        with open_image(content, "png") as image:
            mode = image.mode
            if mode in _INDEX_MODES:
                bits, kind = content[24], content[25]
                stretched = _STRETCHED.get(bits, 1) if kind == _GRAY else 1
                return np.asarray(image).astype(np.int32) // stretched
    except Exception as error:
        raise ValueError(f"it is damaged ({' '.join(str(error).split())[:200]})") from error
    raise ValueError(f"it has colours ({mode}) where each pixel is a number")
