"""Reads labelled objects from a location, whose label format is recognised from what lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.data.annotations.coco_files import find_coco, find_coco_files
from eagleray.data.annotations.faults import AnnotationFaults
from eagleray.data.annotations.folder import Folder, list_folder, split_word
from eagleray.data.annotations.mask_images import find_index_masks, find_instance_masks
from eagleray.data.annotations.read_files import AnnotatedImage
from eagleray.data.annotations.voc import find_voc
from eagleray.data.annotations.yolo import find_yolo
from eagleray.io import storage
from eagleray.io.storage import PathPolicy
from eagleray.sources.path_policy import require_readable

__all__ = ["LABEL_FORMATS", "ReadAnnotations", "read_annotations", "recognise_format"]

_Find = Callable[[Folder], Callable[[AnnotationFaults], list[AnnotatedImage]] | None]

LABEL_FORMATS: dict[str, _Find] = {
    "COCO": find_coco,
    "Pascal VOC": find_voc,
    "YOLO": find_yolo,
    "instance masks": find_instance_masks,
    "class masks": find_index_masks,
}
"""How each label format of a folder is recognised, by its name."""

_FOLDERS_OF_JSON = frozenset({"annotations", "labels"})


@dataclass(frozen=True, slots=True)
class ReadAnnotations:
    """The labelled images of a location.

    Attributes:
        images: The images, in the order of the format.
        splits: `train`, `validation` or `test` for each image; empty if the data do not say.
        notes: Sentences on how they were read, and what was left out.
    """

    images: tuple[AnnotatedImage, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...]


def read_annotations(
    location: str, *, policy: PathPolicy, max_invalid: float
) -> ReadAnnotations | None:
    """Read the labelled objects of a folder, or of the images of a file of COCO's JSON.

    Args:
        location: The folder or the JSON file.
        policy: Which locations may be read.
        max_invalid: Share of invalid objects, and of invalid images, that is allowed.

    Returns:
        The images; None for a location with no label format that is known here, such as a table.

    Raises:
        InputError: If it may not be read, has labels in two formats, or too much is invalid.
    """
    require_readable((location,), policy)
    if location.lower().endswith(".json") and not storage.is_folder(location):
        name, read = "COCO", _find_json(location, policy)
    elif storage.is_folder(location):
        found = _find_in_folder(list_folder(location, policy))
        if found is None:
            return None
        name, read = found
    else:
        return None
    faults = AnnotationFaults()
    images = tuple(read(faults))
    faults.require_few(location, max_invalid)
    if not images:
        raise InputError(f"{location} has no labelled images in the format {name}.")
    splits = _splits(location, [image.group for image in images])
    notes = (_note_of_content(location, name, images), *_notes_of_splits(splits), *faults.notes())
    return ReadAnnotations(images, splits, notes)


def recognise_format(location: str, policy: PathPolicy) -> str | None:
    """Return the name of the label format of a folder; None for a folder without one.

    Raises:
        InputError: If it has labels in two formats.
    """
    found = _find_in_folder(list_folder(location, policy))
    return None if found is None else found[0]


def _find_json(
    location: str, policy: PathPolicy
) -> Callable[[AnnotationFaults], list[AnnotatedImage]]:
    absolute = storage.absolute(location)
    if not storage.exists(absolute):
        raise InputError(f"There is no file {location}; check the path.")
    parent = absolute.rpartition("/")[0]
    if storage.name_of(parent).lower() in _FOLDERS_OF_JSON:
        parent = parent.rpartition("/")[0]
    folder = list_folder(parent, policy)
    path = absolute.removeprefix(f"{parent}/")
    if path not in folder.files:
        raise InputError(f"{location} is skipped, as programs and systems use such names.")
    read = find_coco_files(folder, [path])
    if read is None:
        raise InputError(
            f"{location} is not COCO: it is damaged, or lacks one of the lists images, annotations "
            "and categories."
        )
    return read


def _find_in_folder(
    folder: Folder,
) -> tuple[str, Callable[[AnnotationFaults], list[AnnotatedImage]]] | None:
    found = {name: read for name, find in LABEL_FORMATS.items() if (read := find(folder))}
    if len(found) > 1:
        raise InputError(
            f"{folder.location} has labels in several formats: {', '.join(found)}; name the JSON "
            "of COCO, or move all but one of them elsewhere."
        )
    return next(iter(found.items()), None)


def _splits(location: str, groups: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that names of folders or files say; nothing if they say none."""
    words = [split_word(group) for group in groups]
    if not any(words):
        return ()
    known = {word for word in words if word is not None}
    if None in words:
        other = groups[words.index(None)]
        raise InputError(
            f"{location} is divided into {', '.join(sorted(known))} by the names of its folders or "
            f"files, but images such as those of {other or 'its own folder'!r} are in none of "
            "them; move these into one, or name one as the data and another as --test-data."
        )
    if len(known) == 1:  # one split of data that are divided elsewhere
        return ()
    if "train" not in known:
        raise InputError(
            f"{location} is divided into {', '.join(sorted(known))} by the names of its folders or "
            "files, and none is named train; name one of them as the data."
        )
    return tuple(word for word in words if word is not None)


def _note_of_content(location: str, name: str, images: Sequence[AnnotatedImage]) -> str:
    objects = [one for image in images for one in image.annotation.known]
    classes = len({one.label for one in objects})
    return (
        f"{location} is read as {name}: {len(images):,} image{'s' * (len(images) != 1)} with "
        f"{len(objects):,} object{'s' * (len(objects) != 1)} of "
        f"{classes:,} class{'es' * (classes != 1)}."
    )


def _notes_of_splits(splits: Sequence[str]) -> tuple[str, ...]:
    if not splits:
        return ()
    each = [f"{split} {count:,}" for split, count in Counter(splits).items()]
    return (f"The data are divided by the names of their folders or files: {', '.join(each)}.",)
