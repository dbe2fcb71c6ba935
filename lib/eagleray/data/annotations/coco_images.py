"""Finds the images that a file of COCO's JSON names, in the folder that it lies in.

The JSON has names only. They are below the JSON's own folder or the one above it, perhaps in a
folder `images`, or in one that the JSON is named after: `train2017/` of `instances_train2017.json`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from eagleray.data.annotations.folder import Folder, split_word
from eagleray.io.storage import FileInfo

__all__ = ["CocoImages"]

_MASKS = "panoptic"  # the word of files whose folders of that name have masks, not images
_BETWEEN_WORDS = re.compile(r"[_\-. ]+")


class CocoImages:
    """The images that a JSON file may name.

    Args:
        folder: The folder of the data.
        path: Path of the JSON file in it.
        entries: Its list of images, not validated.
    """

    def __init__(self, folder: Folder, path: str, entries: Iterable[Any]) -> None:
        self._files = folder.files
        self._own_folder, _, name = path.rpartition("/")
        self._words = _BETWEEN_WORDS.split(name.rpartition(".")[0])
        self._bases = list(dict.fromkeys(self._possible_bases()))
        names = (one.get("file_name") for one in entries if isinstance(one, dict))
        self._counts = Counter(_name_of(name) for name in names if isinstance(name, str))

    def _possible_bases(self) -> Iterator[str]:
        """Yield folders, most specific first, each with a slash at its end or empty."""
        above = self._own_folder.rpartition("/")[0]
        for folder in (self._own_folder, above):
            start = f"{folder}/" if folder else ""
            for word in self._words:
                if word in ("", _MASKS):
                    continue
                yield from (f"{start}{word}/", f"{start}images/{word}/", f"{start}{word}/images/")
            yield f"{start}images/"
            yield start

    @property
    def group(self) -> str:
        """The name that says which split the images are in: a word of the JSON's, or its folder."""
        names = (*self._words, self._own_folder.rsplit("/", 1)[-1])
        return next((name for name in names if split_word(name)), "")

    @property
    def searched(self) -> str:
        """The folders in which images are searched, for messages."""
        return ", ".join(base.rstrip("/") or "." for base in self._bases)

    def find(self, file_name: str) -> FileInfo | None:
        """Return the image of a name; None if there is none.

        Names may have folders of another machine, which are ignored if no other image of the JSON
        has the same name in another folder.
        """
        name = file_name.replace("\\", "/").removeprefix("./").lstrip("/")
        names = [name, _name_of(name)] if self._counts[_name_of(name)] == 1 else [name]
        paths = (f"{base}{one}" for one in names for base in self._bases)
        return next((self._files[path] for path in paths if path in self._files), None)


def _name_of(path: str) -> str:
    """Return the last component of a path, with slashes of either kind."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]
