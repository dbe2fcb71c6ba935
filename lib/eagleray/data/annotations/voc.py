"""Reads Pascal VOC: an XML file for each image, beside it or in a folder of annotations.

Coordinates are taken as they are written, from xmin to xmax, as most tools write and read them.
`difficult` and `truncated` objects are read like others.
"""

from __future__ import annotations

from collections.abc import Callable
from xml.etree.ElementTree import Element

from eagleray.core.errors import BadImageError
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import Folder, pair_files
from eagleray.data.annotations.image_sizes import size_of_image
from eagleray.data.annotations.objects import ObjectCollector
from eagleray.data.annotations.read_files import AnnotatedImage, LoadedFile, load_files
from eagleray.data.annotations.xml_tree import parse_xml
from eagleray.io import storage

__all__ = ["find_voc"]

_ROLES = frozenset({"annotations", "annotation", "xmls"})
_MAX_BYTES = 16 * 2**20
_HEAD_BYTES = 4096


def find_voc(folder: Folder) -> Callable[[AnnotationFaults], list[AnnotatedImage]] | None:
    """Return the reader of a folder with Pascal VOC annotations; None for any other folder."""
    files = folder.with_extension(".xml")
    if not files or not _is_voc(folder.files[files[0]].uri):
        return None
    return lambda faults: _read(folder, files, faults)


def _is_voc(location: str) -> bool:
    try:
        return b"<annotation" in storage.read_bytes(location, limit=_HEAD_BYTES)
    except OSError:
        return False


def _read(folder: Folder, files: list[str], faults: AnnotationFaults) -> list[AnnotatedImage]:
    pairs = []
    for pair in pair_files(folder, files, _ROLES, faults):
        if pair.labels is None:
            faults.add(FaultKind.NO_ANNOTATION, pair.place)
        else:
            pairs.append(pair)
    found = []
    for loaded in load_files(pairs, faults, max_bytes=_MAX_BYTES, sized=False):
        annotated = _annotated(loaded, faults)
        if annotated is not None:
            found.append(annotated)
    return found


def _annotated(loaded: LoadedFile, faults: AnnotationFaults) -> AnnotatedImage | None:
    place = loaded.file.place
    try:
        root = parse_xml(loaded.content or b"")
        objects = ObjectCollector(*_size(root, loaded), faults)
    except BadImageError as error:
        faults.add(FaultKind.UNREADABLE_IMAGE, f"{loaded.file.image.uri}: {error.message}")
        return None
    except ValueError as error:
        faults.add(FaultKind.UNREADABLE_FILE, f"{place}: {error}")
        return None
    for number, item in enumerate(root.iterfind("object"), 1):
        _add_object(objects, item, f"{place}, object {number}")
    annotation = objects.annotation(place)
    return None if annotation is None else loaded.annotated(annotation)


def _size(root: Element, loaded: LoadedFile) -> tuple[int, int]:
    """Return width and height as written, or those of the image where none are written."""
    texts = [root.findtext(f"size/{name}") for name in ("width", "height")]
    if any(text is None or text.strip() in ("", "0") for text in texts):
        return size_of_image(loaded.file.image)
    width, height = (_number(text or "") for text in texts)
    return round(width), round(height)


def _add_object(objects: ObjectCollector, item: Element, place: str) -> None:
    try:
        left, top, right, bottom = (
            _number(item.findtext(f"bndbox/{name}") or "")
            for name in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError as error:
        objects.reject(FaultKind.UNREADABLE_OBJECT, f"{place}: {error}")
        return
    objects.add(item.findtext("name") or "", (left, top, right - left, bottom - top), place)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()[:40]!r} is not a number") from None
    if not abs(value) <= 1e9:  # NaN too
        raise ValueError(f"{text.strip()[:40]!r} is not a number of pixels")
    return value
