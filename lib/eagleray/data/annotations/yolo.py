"""Reads YOLO text: a file for each image with a line for each object, and a list of classes.

    0 0.5 0.5 0.25 0.1            class, centre x and y, width and height, as shares of the image
    0 0.4 0.4 0.6 0.4 0.5 0.6     class, x and y of the points of a polygon

An image without a file is one without objects, as everywhere where this format is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eagleray.core.errors import InputError
from eagleray.data.annotations.class_names import CLASSES_FILE, find_file, read_classes
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import Folder, pair_files
from eagleray.data.annotations.masks import mask_of_polygons
from eagleray.data.annotations.objects import ObjectCollector
from eagleray.data.annotations.read_files import AnnotatedImage, LoadedFile, load_files

__all__ = ["find_yolo"]

_LISTS = ("data.yaml", "data.yml", "dataset.yaml", CLASSES_FILE, "obj.names")
_OTHER_TEXTS = (CLASSES_FILE, "readme.txt", "license.txt", "requirements.txt")
_ROLES = frozenset({"labels"})
_MAX_BYTES = 16 * 2**20
_DECIMALS = 4  # of a pixel; shares are written with about six digits


def find_yolo(folder: Folder) -> Callable[[AnnotationFaults], list[AnnotatedImage]] | None:
    """Return the reader of a folder with YOLO text; None for any other folder."""
    texts = folder.with_extension(".txt")
    in_labels = [path for path in texts if "labels" in path.lower().split("/")[:-1]]
    names = find_file(folder, *_LISTS)
    if in_labels:
        files = in_labels
    elif names is not None:
        stems = {path.rpartition(".")[0] for path in folder.images()}
        files = [path for path in texts if path.rpartition(".")[0] in stems]
    else:
        files = []
    files = [path for path in files if path.rsplit("/", 1)[-1].lower() not in _OTHER_TEXTS]
    if not files:
        return None
    return lambda faults: _read(folder, files, names, faults)


def _read(
    folder: Folder, files: list[str], names: str | None, faults: AnnotationFaults
) -> list[AnnotatedImage]:
    if names is None:
        raise InputError(
            f"{folder.location} holds YOLO labels such as {files[0]} and no list of classes; put "
            "a data.yaml with `names`, or a classes.txt with a name on each line, into it."
        )
    classes = read_classes(folder, names)
    pairs = pair_files(folder, files, _ROLES, faults)
    found = []
    for loaded in load_files(pairs, faults, max_bytes=_MAX_BYTES, sized=True):
        annotated = _annotated(loaded, classes, faults)
        if annotated is not None:
            found.append(annotated)
    return found


def _annotated(
    loaded: LoadedFile, classes: Mapping[int, str], faults: AnnotationFaults
) -> AnnotatedImage | None:
    assert loaded.size is not None
    place = loaded.file.place
    if loaded.content is None:
        faults.add(FaultKind.WITHOUT_FILE, place)
    try:
        lines = (loaded.content or b"").decode("utf-8-sig").splitlines()
        objects = ObjectCollector(*loaded.size, faults)
    except ValueError:
        faults.add(FaultKind.UNREADABLE_FILE, f"{place}: it is not text in UTF-8")
        return None
    for number, line in enumerate(lines, 1):
        if line.strip():
            _add_object(objects, line, classes, f"{place}, line {number}")
    annotation = objects.annotation(place)
    return None if annotation is None else loaded.annotated(annotation)


def _add_object(
    objects: ObjectCollector,
    line: str,
    classes: Mapping[int, str],
    place: str,
) -> None:
    words = line.split()
    try:
        index, values = int(words[0][:12]), [float(word) for word in words[1:]]
    except ValueError:
        objects.reject(FaultKind.UNREADABLE_OBJECT, f"{place}: {line[:60]!r} is not of numbers")
        return
    label = classes.get(index)
    if label is None:
        objects.reject(FaultKind.UNKNOWN_LABEL, f"{place}: class {index}")
    elif len(values) == 4:
        x, y, width, height = values
        box = (x - width / 2, y - height / 2, width, height)
        objects.add(label, _in_pixels(box, objects), place)
    elif len(values) < 6:
        is_polygon = len(values) in (2, 4)
        kind = FaultKind.BAD_POLYGON if is_polygon else FaultKind.UNREADABLE_OBJECT
        objects.reject(kind, f"{place}: {len(values)} numbers after the class")
    else:
        _add_polygon(objects, label, values, place)


def _in_pixels(
    box: tuple[float, float, float, float], objects: ObjectCollector
) -> tuple[float, float, float, float]:
    x, y, width, height = box
    sides = (objects.width, objects.height, objects.width, objects.height)
    left, top, across, down = (
        round(share * side, _DECIMALS)
        for share, side in zip((x, y, width, height), sides, strict=True)
    )
    return left, top, across, down


def _add_polygon(
    objects: ObjectCollector,
    label: str,
    values: list[float],
    place: str,
) -> None:
    """Add an object with the mask of a polygon, and the box around its points."""
    xs = [value * objects.width for value in values[::2]]
    ys = [value * objects.height for value in values[1::2]]
    points = [value for point in zip(xs, ys, strict=False) for value in point]
    try:
        if len(values) % 2:
            raise ValueError("it has an x without its y")
        mask = mask_of_polygons([points], objects.height, objects.width)
    except ValueError as error:
        objects.reject(FaultKind.BAD_MASK, f"{place}: {error}")
        return
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    objects.add(label, box, place, mask=mask)
