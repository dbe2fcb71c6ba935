"""Finds the files of COCO's JSON in a folder, and reads each in the form that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from eagleray.data.annotations.coco import CocoFile
from eagleray.data.annotations.coco_panoptic import SEGMENTS, PanopticFile
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import Folder, read_small
from eagleray.data.annotations.read_files import AnnotatedImage
from eagleray.io.storage import FileInfo

__all__ = ["find_coco", "find_coco_files"]

_MAX_BYTES = 2**30
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_MAX_CANDIDATES = 16
_PANOPTIC = "panoptic"
_STARTS = ("instances_", _PANOPTIC)
"""Starts of COCO's own names for its files of objects and of segments, beside those of captions."""


def find_coco(folder: Folder) -> Callable[[AnnotationFaults], list[AnnotatedImage]] | None:
    """Return the reader of a folder with files of COCO's JSON; None for any other folder.

    They lie at the top, in a folder `annotations`, or beside the images of each split.
    """
    candidates = [path for path in folder.with_extension(".json") if path.count("/") <= 1]
    for start in _STARTS:
        named = [path for path in candidates if path.rsplit("/", 1)[-1].startswith(start)]
        if named:
            candidates = named
            break
    if not 1 <= len(candidates) <= _MAX_CANDIDATES:
        return None
    contents = _contents_of(folder, candidates)
    return (lambda faults: _with_unlisted(folder, contents, faults)) if contents else None


def _with_unlisted(
    folder: Folder, contents: Mapping[str, bytes], faults: AnnotationFaults
) -> list[AnnotatedImage]:
    """Read files, and count the images of a folder that none of them lists."""
    found, listed = _read(folder, contents, faults)
    for path in folder.images():
        is_mask = any(part.startswith(_PANOPTIC) for part in path.split("/")[:-1])
        if folder.files[path].uri not in listed and not is_mask:
            faults.add(FaultKind.UNLISTED, folder.place(path))
    return found


def find_coco_files(
    folder: Folder, paths: Iterable[str]
) -> Callable[[AnnotationFaults], list[AnnotatedImage]] | None:
    """Return the reader of those files that are COCO's JSON; None if there is none.

    Args:
        folder: The folder of the files and of the images.
        paths: Paths of the files in it.

    Raises:
        InputError: If the storage does not respond.
    """
    contents = _contents_of(folder, paths)
    return (lambda faults: _read(folder, contents, faults)[0]) if contents else None


def _contents_of(folder: Folder, paths: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of those files that are COCO's JSON, by their paths."""
    contents = {path: _content_of(folder.files[path]) for path in paths}
    return {
        path: content for path, content in contents.items() if all(key in content for key in _KEYS)
    }


def _content_of(file: FileInfo) -> bytes:
    try:
        return read_small(file.uri, _MAX_BYTES)
    except ValueError:
        return b""


def _read(
    folder: Folder, contents: Mapping[str, bytes], faults: AnnotationFaults
) -> tuple[list[AnnotatedImage], set[str]]:
    """Return the images that can be read, and the locations of all that are listed and there."""
    found, listed = [], set[str]()
    for path, content in contents.items():
        kind = PanopticFile if SEGMENTS in content else CocoFile
        file = kind(folder, path, content, faults)
        found += file.read()
        listed |= file.listed
    return found, listed
