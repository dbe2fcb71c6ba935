"""Reads labels from folders: one folder for each class, perhaps inside of folders for the splits.

flowers/rose/1.jpg          the first folder is the label
flowers/train/rose/1.jpg    folders with the names of splits divide the data
"""

from __future__ import annotations

import functools
import mimetypes
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.data.label_format import SPLIT_WORDS, Labels
from eagleray.data.label_texts import clean_label
from eagleray.io import storage
from eagleray.io.storage.skipped_names import is_skipped_name
from eagleray.sources import LISTING_SCHEMA

__all__ = ["read_class_folders"]

_URI_AND_CONTAINER = tuple(map(LISTING_SCHEMA.get_field_index, ("uri", "container")))
_MAX_NAMED = 3

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


@dataclass(slots=True)
class _Files:
    """Listed files, by what their names say.

    Attributes:
        rows: Numbers of the rows that may be images.
        paths: Path of each of these below the root, as its parts.
        others: Paths of the files that are not images by their names.
    """

    rows: list[int] = field(default_factory=list)
    paths: list[list[str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def read_class_folders(location: str, root: str, rows: pa.Table) -> Labels:
    """Read labels from the folders that images are in.

    Args:
        location: What the user named, for messages.
        root: Text that the images' URIs begin with and their paths follow.
        rows: The images, with the columns of a listing.

    Raises:
        InputError: If there are no images in class folders, or the folders are ambiguous.
    """
    found = _by_name(root, rows)
    loose = next((parts[0] for parts in found.paths if len(parts) < 2), None)
    if loose is not None:
        all_loose = all(len(parts) < 2 for parts in found.paths)
        where = "no class folders, and images such as" if all_loose else "beside class folders"
        raise InputError(
            f"{location} holds {where} {loose!r}: every image belongs into a folder named after "
            "its class, or use a table of paths and labels."
        )
    if not found.paths:
        skipped = " ".join(_notes_of_skipped(found))
        raise InputError(f"{location} holds no images in class folders. {skipped}".rstrip())
    folders = _split_folders(location, found.paths)
    depth = 1 if folders else 0
    splits = tuple(folders[parts[0]] for parts in found.paths) if folders else ()
    names = {"/".join(parts[: depth + 1]) for parts in found.paths}
    return Labels(
        rows=found.rows,
        labels=tuple(clean_label(parts[depth]) for parts in found.paths),
        splits=splits,
        notes=(
            *_notes_of_splits(folders, splits),
            *_notes_of_cleaned({parts[depth] for parts in found.paths}),
            *_notes_of_skipped(found),
            *_notes_of_empty(root, found, names, folders),
        ),
    )


def _by_name(root: str, rows: pa.Table) -> _Files:
    found = _Files()
    uris, containers = (rows.column(place).to_pylist() for place in _URI_AND_CONTAINER)
    for row, (uri, container) in enumerate(zip(uris, containers, strict=True)):
        name = uri.removeprefix(root)
        if container is not None:
            name = name.removesuffix(f"::{container}").removeprefix("./")  # as `tar c .` names
        parts = name.split("/")
        if _may_be_image(parts):
            found.rows.append(row)
            found.paths.append(parts)
        else:
            found.others.append(name)
    return found


def _may_be_image(parts: Sequence[str]) -> bool:
    """Whether a file has the extension of an image or, in a class folder, an unknown one."""
    extension = PurePosixPath(parts[-1]).suffix.lower()
    kind = _media_types().get(extension)
    if kind is None and len(parts) == 1:  # LICENSE, Makefile, …
        return extension in _MORE_IMAGES
    return kind is None or kind.startswith("image/")


@functools.cache
def _media_types() -> dict[str, str]:
    """Return Python's own media types by extension, without those configured on this machine."""
    return (
        dict.fromkeys(_NO_IMAGES, "application/octet-stream")
        | (mimetypes.MimeTypes().types_map[True])
    )


# --- splits -----------------------------------------------------------------------------------


def _split_folders(location: str, paths: Sequence[list[str]]) -> dict[str, str]:
    """Return the split that each of the root's folders is; nothing if they are classes.

    Raises:
        InputError: If some are named as splits and others not, two are the same split, or none is
            the train split.
    """
    folders = dict.fromkeys(parts[0] for parts in paths)
    splits = {
        folder: split
        for folder in folders
        if (split := SPLIT_WORDS.get(clean_label(folder).casefold()))
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


# --- notes -----------------------------------------------------------------------------


def _notes_of_splits(folders: Mapping[str, str], splits: Sequence[str]) -> Iterable[str]:
    if folders:
        counts = Counter(splits)
        each = [f"{folder} is {split} ({counts[split]:,})" for folder, split in folders.items()]
        yield f"The data are divided by their folders: {', '.join(each)}."


def _notes_of_cleaned(folders: Collection[str]) -> Iterable[str]:
    changed = sorted(folder for folder in folders if folder != clean_label(folder))
    if changed:
        yield (
            "Labels are folder names without the white space around them and in one Unicode form, "
            f"which changes {len(changed):,} of them ({_some(map(ascii, changed))})."
        )


def _notes_of_skipped(found: _Files) -> Iterable[str]:
    if count := len(found.others):
        yield (
            f"Skipped {count:,} file{'s' * (count != 1)} whose names are not those of images "
            f"({_some(found.others)})."
        )


def _notes_of_empty(
    root: str, found: _Files, names: Collection[str], folders: Mapping[str, str]
) -> Iterable[str]:
    """Name the folders that would be classes if they held images."""
    depth = 2 if folders else 1
    there = {"/".join(name.split("/")[:depth]) for name in found.others if name.count("/") >= depth}
    if not storage.is_remote(root):  # only local folders exist without files in them
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


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MAX_NAMED]) + ", …" * (len(listed) > _MAX_NAMED)
