"""A folder with a folder for each class, or with folders of such for training and test.

flowers/rose/1.jpg          the first folder is the label
flowers/train/rose/1.jpg    folders that are named as splits are divide the data
"""

from __future__ import annotations

import functools
import mimetypes
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from eagleray.core.errors import InputError
from eagleray.data.label_texts import clean_label
from eagleray.io import storage
from eagleray.io.storage.skipped_names import is_skipped_name

__all__ = ["SPLIT_FOLDERS", "ClassTree", "read_tree"]

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What folders are called that divide data, in lower case, after Hugging Face's image folders."""

# What Python's media types lack.
_MORE_IMAGES = frozenset(
    [
        ".webp",
        ".jp2",
        ".jxl",
        ".qoi",
        ".tga",
        ".dds",
        ".pcx",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
    ]
)
_NO_IMAGES = frozenset(
    [".md", ".rst", ".yaml", ".yml", ".toml", ".ini", ".log", ".parquet", ".jsonl", ".ndjson"]
)


@dataclass(frozen=True, slots=True)
class ClassTree:
    """The images of a tree, row by row.

    Attributes:
        uris: Locations of the images.
        labels: Names of their class folders.
        versions: What changes when an image's content changes.
        splits: `train`, `validation` or `test` of each; empty where no folders divide the data.
        notes: Sentences on what was skipped, and how the folders were read.
    """

    uris: tuple[str, ...]
    labels: tuple[str, ...]
    versions: tuple[str, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    """The files below a root, by what their names say."""

    images: list[tuple[storage.FileInfo, list[str]]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # no images by their names
    systems: list[str] = field(default_factory=list)  # a system's or a program's own


def read_tree(location: str) -> ClassTree:
    """Read a folder of class folders.

    Raises:
        InputError: It holds no images in class folders, or what its folders are is ambiguous.
    """
    root = storage.absolute(location).rstrip("/") + "/"
    found = _list(root)
    loose = next((parts[0] for _, parts in found.images if len(parts) < 2), None)
    if loose is not None:
        where = (
            "no class folders, and images such as" if _all_loose(found) else "beside class folders"
        )
        raise InputError(
            f"{location} holds {where} {loose!r}: every image belongs into a folder named after "
            "its class, or use a table of paths and labels."
        )
    if not found.images:
        skipped = " ".join(_notes_of_skipped(found))
        raise InputError(
            f"Folder {location} holds no images in class folders.{' ' * bool(skipped)}{skipped}"
        )
    folders = _split_folders(location, [parts for _, parts in found.images])
    depth = 1 if folders else 0
    labels = tuple(clean_label(parts[depth]) for _, parts in found.images)
    splits = tuple(folders[parts[0]] for _, parts in found.images) if folders else ()
    names = {"/".join(parts[: depth + 1]) for _, parts in found.images}
    return ClassTree(
        uris=tuple(file.uri for file, _ in found.images),
        labels=labels,
        versions=tuple(file.version for file, _ in found.images),
        splits=splits,
        notes=(
            *_notes_of_splits(folders, splits),
            *_notes_of_cleaned({parts[depth] for _, parts in found.images}),
            *_notes_of_skipped(found),
            *_notes_of_empty(root, found, names, folders),
        ),
    )


def _list(root: str) -> _Found:
    found = _Found()
    for file in storage.list_files(root):
        name = file.uri.removeprefix(root)
        parts = name.split("/")
        if any(map(is_skipped_name, parts)):
            found.systems.append(name)
        elif _may_be_image(parts):
            found.images.append((file, parts))
        else:
            found.others.append(name)
    return found


def _may_be_image(parts: Sequence[str]) -> bool:
    """Whether a file's extension is that of images, or in a class folder none that is known."""
    extension = PurePosixPath(parts[-1]).suffix.lower()
    kind = _media_types().get(extension)
    if kind is None and len(parts) == 1:  # LICENSE, Makefile, …
        return extension in _MORE_IMAGES
    return kind is None or kind.startswith("image/")


@functools.cache
def _media_types() -> dict[str, str]:
    """Return Python's own media types by extension, whatever this machine knows beside them."""
    return (
        dict.fromkeys(_NO_IMAGES, "application/octet-stream")
        | (mimetypes.MimeTypes().types_map[True])
    )


# --- splits -----------------------------------------------------------------------------------


def _split_folders(location: str, paths: Sequence[list[str]]) -> dict[str, str]:
    """Return which split each of the root's folders is; nothing where they are classes.

    Raises:
        InputError: Some are named as splits and others not, two are the same split, or there is
            nothing to train on.
    """
    folders = dict.fromkeys(parts[0] for parts in paths)
    splits = {
        folder: split
        for folder in folders
        if (split := SPLIT_FOLDERS.get(clean_label(folder).casefold()))
    }
    shallow = {parts[0] for parts in paths if len(parts) == 2}  # hold images themselves
    if not splits or (len(splits) < len(folders) and len(splits) == 1 and set(splits) <= shallow):
        return {}  # one class among others may well be called `train`
    example = f"{location.rstrip('/')}/{next(iter(splits))}"
    if len(splits) < len(folders):
        others = [folder for folder in folders if folder not in splits]
        raise InputError(
            f"{location} has the folders {_some(splits)}, which divide data by their names, beside "
            f"{_some(others)}: name one as the data ({example}), and another as --test-data."
        )
    if shallow & set(splits):
        raise InputError(
            f"{location} is divided into {_some(splits)}, but {min(shallow)!r} holds images "
            "without class folders: put them into folders named after their classes, or use a "
            "table of paths and labels."
        )
    twice = [split for split, count in Counter(splits.values()).items() if count > 1]
    if twice:
        both = [folder for folder, split in splits.items() if split == twice[0]]
        raise InputError(
            f"{location} has the folders {_some(both)}, which would both be the {twice[0]} split; "
            f"rename one, or name one as the data ({example}), and another as --test-data."
        )
    if "train" not in splits.values():
        raise InputError(
            f"{location} is divided into {_some(splits)} and has no folder named train; name one "
            f"of them as the data ({example})."
        )
    return splits


# --- what is said -----------------------------------------------------------------------------


def _all_loose(found: _Found) -> bool:
    return all(len(parts) < 2 for _, parts in found.images)


def _notes_of_splits(folders: dict[str, str], splits: Sequence[str]) -> Iterable[str]:
    if folders:
        counts = Counter(splits)
        said = [f"{folder} is {split} ({counts[split]:,})" for folder, split in folders.items()]
        yield f"The data are divided by their folders: {', '.join(said)}."


def _notes_of_cleaned(folders: Collection[str]) -> Iterable[str]:
    changed = sorted(folder for folder in folders if folder != clean_label(folder))
    if changed:
        yield (
            "Labels are folder names without the white space around them and in one Unicode form, "
            f"which changes {len(changed):,} of them ({_some(map(ascii, changed))})."
        )


def _notes_of_skipped(found: _Found) -> Iterable[str]:
    if found.others:
        yield (
            f"Skipped {_files(found.others)} whose names are not those of images "
            f"({_some(found.others)})."
        )
    if found.systems:
        yield f"Skipped {_files(found.systems)} of a system or a program ({_some(found.systems)})."


def _notes_of_empty(
    root: str, found: _Found, names: Collection[str], folders: dict[str, str]
) -> Iterable[str]:
    """Say which folders would be classes if they held images."""
    depth = 2 if folders else 1
    there = {"/".join(name.split("/")[:depth]) for name in found.others if name.count("/") >= depth}
    if not storage.is_remote(root):  # where folders are there without files in them
        pattern = "*/*" if folders else "*"
        there |= {
            os.fsencode(folder.relative_to(root)).decode("utf-8", "backslashreplace")
            for folder in Path(root).glob(pattern)
            if folder.is_dir() and not is_skipped_name(folder.name)
        }
    empty = sorted(there - set(names))
    if empty:
        plural = "folder holds" if len(empty) == 1 else "folders hold"
        yield f"{len(empty):,} {plural} no images, and so no class: {_some(empty)}."


def _files(names: Sequence[str]) -> str:
    return f"{len(names):,} file{'s' * (len(names) != 1)}"


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + ", …" * (len(listed) > most)
