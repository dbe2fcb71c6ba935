"""Lists a folder of labelled images, and pairs each image with its file of labels.

images/train/1.jpg    labels/train/1.txt      the same path below a folder for each of the two,
train/images/1.jpg    train/labels/1.txt      wherever that folder is,
train/1.jpg           train/1.xml             or without such folders
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from eagleray.core.errors import InputError
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.label_format import SPLIT_WORDS
from eagleray.io import storage
from eagleray.io.storage import FileInfo, PathPolicy
from eagleray.sources.path_policy import check_files
from eagleray.sources.skipped import skipped_kind

__all__ = [
    "IMAGE_ROLES",
    "Folder",
    "LabelledFile",
    "is_image_name",
    "list_folder",
    "pair_files",
    "read_small",
    "split_word",
]

IMAGE_ROLES = frozenset({"images", "jpegimages"})
"""Names of folders that hold the images of a data set, in lower case."""

_IMAGE_EXTENSIONS = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
        *(".dib", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpf", ".jpx"),
    ]
)


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder.

    Attributes:
        location: The folder as the user named it, for messages.
        files: Files by their path below the folder, in the order of names; without those of
            programs and systems.
    """

    location: str
    files: Mapping[str, FileInfo]

    def place(self, path: str) -> str:
        """Return a file's location for messages."""
        return storage.join(self.location, path)

    def with_extension(self, *extensions: str) -> list[str]:
        """Return the paths whose names end with one of some extensions, in lower or upper case."""
        return [path for path in self.files if path.lower().endswith(extensions)]

    def images(self) -> list[str]:
        """Return the paths of the images: those in folders for images if there are such folders."""
        named = [path for path in self.files if is_image_name(path)]
        return [path for path in named if _role_of(path, IMAGE_ROLES)] or named


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image with its file of labels.

    Attributes:
        key: Path that both have in common, without folders for images or labels and extension.
        image: The image.
        labels: Its file of labels; None if there is none.
        place: Location of the file of labels, or of an image without one, for messages.
    """

    key: str
    image: FileInfo
    labels: FileInfo | None
    place: str


def list_folder(location: str, policy: PathPolicy) -> Folder:
    """List a folder at any depth.

    Raises:
        InputError: If it cannot be listed, or holds a file that may not be read.
    """
    root = storage.absolute(location).rstrip("/") + "/"
    tables = check_files(storage.list_tables(root.rstrip("/") or "/", policy), location, policy)
    files = {}
    for table in tables:
        for uri, size, version in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        ):
            path = uri.removeprefix(root)
            if skipped_kind(path) is None:
                files[path] = FileInfo(uri, size, version)
    return Folder(location, files)


def is_image_name(path: str) -> bool:
    """Whether a file has the extension of an image."""
    return PurePosixPath(path).suffix.lower() in _IMAGE_EXTENSIONS


def split_word(name: str) -> str | None:
    """Return the split that a folder's name means, as `train` and `val2017` do; None for others."""
    plain = name.casefold()
    plain = plain[:-4] if plain[-4:].isdecimal() else plain
    return SPLIT_WORDS.get(plain)


def pair_files(
    folder: Folder, labels: Iterable[str], roles: Collection[str], faults: AnnotationFaults
) -> list[LabelledFile]:
    """Pair the images of a folder with files of labels.

    Args:
        folder: The folder.
        labels: Paths of the files of labels.
        roles: Names of folders that hold such files, in lower case.
        faults: Counts the files of labels without an image, and images of the same name.

    Returns:
        All images, in the order of names; some may have no file of labels.
    """
    taken = set(labels)
    by_key: dict[str, str] = {}
    for path in _in_order(folder, taken):
        key = _key(path, roles)
        if by_key.setdefault(key, path) != path:
            faults.add(FaultKind.NO_IMAGE, f"{folder.place(path)}, beside {by_key[key]}")
    found: dict[str, LabelledFile] = {}
    for path in folder.images():
        if path in taken:
            continue
        key = _key(path, IMAGE_ROLES)
        if key in found:
            other = found[key].image.uri
            faults.add(FaultKind.NO_ANNOTATION, f"{folder.place(path)}, named as {other}")
            continue
        file = by_key.pop(key, None)
        found[key] = LabelledFile(
            key,
            folder.files[path],
            None if file is None else folder.files[file],
            folder.place(path if file is None else file),
        )
    for path in by_key.values():
        faults.add(FaultKind.NO_IMAGE, folder.place(path))
    return list(found.values())


def _in_order(folder: Folder, paths: Collection[str]) -> list[str]:
    """Return some paths in the order of the files."""
    return [path for path in folder.files if path in paths]


def read_small(location: str, max_bytes: int) -> bytes:
    """Read a file of labels.

    Raises:
        ValueError: If it cannot be read or is too large; the message completes a sentence about it.
        InputError: If the storage does not respond.
    """
    try:
        content = storage.read_bytes(location, limit=max_bytes + 1)
    except storage.StorageUnavailableError as error:
        raise InputError(f"{location} cannot be read now ({error}); try again.") from error
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content


def _role_of(path: str, roles: Collection[str]) -> str | None:
    return next((part for part in path.split("/")[:-1] if part.lower() in roles), None)


def _key(path: str, roles: Collection[str]) -> str:
    """Return a path without its extension and the first folder of some names."""
    parts = path.split("/")
    role = _role_of(path, roles)
    if role is not None:
        parts.remove(role)
    return str(PurePosixPath("/".join(parts)).with_suffix(""))
