"""Reads and writes the lists of classes of label formats that number them."""

from __future__ import annotations

from typing import Any

import yaml

from eagleray.core.errors import InputError
from eagleray.data.annotations.folder import Folder, read_small
from eagleray.data.label_texts import clean_label

__all__ = ["CLASSES_FILE", "classes_of_lines", "classes_of_yaml", "find_file", "read_classes"]

CLASSES_FILE = "classes.txt"
_MAX_BYTES = 2**20
_MAX_CLASSES = 100_000


def find_file(folder: Folder, *names: str) -> str | None:
    """Return the path of the first of some files that is highest in a folder; None for none."""
    for name in names:
        found = [path for path in folder.files if path.rsplit("/", 1)[-1].lower() == name]
        if found:
            return min(found, key=lambda path: (path.count("/"), path))
    return None


def read_classes(folder: Folder, path: str) -> dict[int, str]:
    """Return the names of classes by their numbers, from a YAML file or from lines of text.

    Raises:
        InputError: If the file cannot be read or does not name classes.
    """
    place = folder.place(path)
    try:
        content = read_small(folder.files[path].uri, _MAX_BYTES)
        is_yaml = path.lower().endswith((".yaml", ".yml"))
        return classes_of_yaml(content) if is_yaml else classes_of_lines(content)
    except ValueError as error:
        raise InputError(f"{place} does not name classes: {error}.") from None


def classes_of_lines(content: bytes) -> dict[int, str]:
    """Return the class of each line, counted from 0.

    Raises:
        ValueError: If the content is not text or names a class twice.
    """
    try:
        lines = content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    return _checked(dict(enumerate(lines)))


def classes_of_yaml(content: bytes) -> dict[int, str]:
    """Return the `names` of a YOLO data set: a list, or a mapping of numbers to names.

    Raises:
        ValueError: If there are none.
    """
    try:
        fields = yaml.load(content, yaml.BaseLoader)  # noqa: S506 - it makes texts only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())
        raise ValueError(f"it is not valid YAML ({fault[:200]})") from None
    names = fields.get("names") if isinstance(fields, dict) else None
    if isinstance(names, list):
        return _checked(dict(enumerate(names)))
    if isinstance(names, dict):
        return _checked({_index(key): name for key, name in names.items()})
    raise ValueError("write a list as in `names: [cell, debris]`")


def _index(key: Any) -> int:
    if not isinstance(key, str) or not key.isdecimal() or len(key) > 9:
        raise ValueError(f"{str(key)[:40]!r} is not the number of a class")
    return int(key)


def _checked(names: dict[int, Any]) -> dict[int, str]:
    if not 1 <= len(names) <= _MAX_CLASSES:
        raise ValueError(f"it has {len(names):,} names, from 1 to {_MAX_CLASSES:,} are read")
    found = {}
    for index, name in names.items():
        if not isinstance(name, str):
            raise ValueError(f"the name of class {index} is not text")
        label = clean_label(name)
        if not label:
            raise ValueError(f"class {index} has an empty name")
        found[index] = label
    if len(set(found.values())) < len(found):
        twice = next(name for name in found.values() if list(found.values()).count(name) > 1)
        raise ValueError(f"two classes have the name {twice!r}")
    return found
