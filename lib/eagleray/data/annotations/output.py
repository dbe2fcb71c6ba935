"""Defines what a writer of a label format gets, and how it says what the format cannot carry."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from eagleray.core.errors import InputError
from eagleray.data.annotations.folder import IMAGE_ROLES, split_word
from eagleray.data.labelled import LabelledImages
from eagleray.tasks.annotation import Annotation, TrueObject, parse_annotation

__all__ = [
    "SPLIT_FOLDERS",
    "Losses",
    "NamedImage",
    "Writer",
    "classes_of",
    "name_images",
    "require_plain_names",
    "split_folders",
]

SPLIT_FOLDERS = {"train": "train", "validation": "val", "test": "test"}
"""Name of the folder of each split."""

_CONTROL = re.compile("[\\x00-\\x1f\\x7f\\ufffe\\uffff]")

Losses = Counter[str]
"""How many of what a format cannot carry, by its words."""


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image as it is written.

    Attributes:
        name: Path below the folder of images, with the folder of its split first if it has one.
        uri: Location of the image.
        annotation: Its labelled objects.
        split: `train`, `validation` or `test`; empty without splits.
    """

    name: str
    uri: str
    annotation: Annotation
    split: str = ""

    @property
    def stem(self) -> str:
        """The name without its extension, which files of labels share."""
        return str(PurePosixPath(self.name).with_suffix(""))

    def without(self, losses: Losses, *, crowds: str = "", masks: str = "") -> list[TrueObject]:
        """Return the objects that a format can carry, and count what it cannot.

        Args:
            losses: Counts it.
            crowds: Words for crowds that are left out; empty if they are written.
            masks: Words for masks that are left out; empty if they are written.
        """
        kept = [one for one in self.annotation.objects if not (crowds and one.crowd)]
        losses[crowds] += len(self.annotation.objects) - len(kept)
        if masks:
            losses[masks] += sum(one.mask is not None for one in kept)
        return kept


Writer = Callable[[Sequence[NamedImage], Losses], Iterator[tuple[str, bytes]]]
"""Yields the path below the output, and the content, of each file of a format."""


def name_images(images: LabelledImages) -> list[NamedImage]:
    """Return images with names below their common folder, and their labels parsed.

    Raises:
        InputError: If a label is not that of objects, or two images would have the same name.
    """
    root = _common_folder(images.uris)
    splits = images.splits or ("",) * len(images)
    named: dict[str, NamedImage] = {}
    for index, (uri, text, split) in enumerate(
        zip(images.uris, images.labels, splits, strict=True)
    ):
        try:
            annotation = parse_annotation(text)
        except InputError as error:
            raise InputError(f"The label of {images.place(index)}: {error}") from None
        one = NamedImage(_name(uri.removeprefix(root), split), uri, annotation, split)
        other = named.setdefault(one.stem, one)
        if other is not one:
            raise InputError(
                f"{other.uri} and {uri} would have the same file of labels, {one.stem}; rename one "
                "of them, or convert them into different outputs."
            )
    return list(named.values())


def _common_folder(uris: Sequence[str]) -> str:
    pairs = zip(min(uris), max(uris), strict=False)
    shared = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared[: shared.rfind("/") + 1]


def _name(path: str, split: str) -> str:
    """Return a safe name: without the folder of images, and with that of the split first."""
    parts = [part if part.strip(".") else "_" for part in path.split("/") if part]
    role = next((part for part in parts[:-1] if part.lower() in IMAGE_ROLES), None)
    if role is not None:
        parts.remove(role)
    if split:
        if len(parts) > 1 and split_word(parts[0]) == split:
            del parts[0]
        parts.insert(0, SPLIT_FOLDERS[split])
    return "/".join(parts)


def classes_of(images: Sequence[NamedImage]) -> list[str]:
    """Return the classes of all objects in alphabetical order."""
    return sorted({label for image in images for label in image.annotation.labels})


def split_folders(images: Sequence[NamedImage]) -> dict[str, list[NamedImage]]:
    """Return the images of each split by the name of its folder; all by "" without splits."""
    found: dict[str, list[NamedImage]] = {}
    for image in images:
        found.setdefault(SPLIT_FOLDERS.get(image.split, ""), []).append(image)
    return found


def require_plain_names(names: Sequence[str], kind: str) -> None:
    """Refuse names of classes that do not fit on a line of text.

    Raises:
        InputError: If one has a line break or a control character.
    """
    for name in names:
        if len(name.splitlines()) != 1 or _CONTROL.search(name):
            raise InputError(
                f"The class {name!r} has a line break or a control character, which {kind} cannot "
                "carry; rename it, or use --to coco."
            )
