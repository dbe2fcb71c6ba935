"""Reads images' sizes and their files of labels, a few ahead of the code that parses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eagleray.core.errors import BadImageError
from eagleray.data.annotations.faults import AnnotationFaults, FaultKind
from eagleray.data.annotations.folder import LabelledFile, read_small
from eagleray.data.annotations.image_sizes import size_of_image
from eagleray.io.read_ahead import read_ahead
from eagleray.io.storage import FileInfo
from eagleray.tasks.annotation import Annotation

__all__ = ["THREADS", "AnnotatedImage", "LoadedFile", "load_files"]

THREADS = 16
"""Number of threads that read files of labels."""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image with its labelled objects.

    Attributes:
        image: The image.
        annotation: Its labelled objects.
        group: Name that may say which split the image is in: that of a folder, or of a file; empty
            for none.
    """

    image: FileInfo
    annotation: Annotation
    group: str = ""


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """A file of labels with its content.

    Attributes:
        file: The image and its file of labels.
        content: Content of the file of labels; None if there is no such file.
        size: Width and height of the upright image in pixels; None if it is not read.
    """

    file: LabelledFile
    content: bytes | None
    size: tuple[int, int] | None

    def annotated(self, annotation: Annotation) -> AnnotatedImage:
        """Return the image with its annotation, and with its first folder as its group."""
        folder, slash, _ = self.file.key.partition("/")
        return AnnotatedImage(self.file.image, annotation, folder if slash else "")


def load_files(
    files: Iterable[LabelledFile], faults: AnnotationFaults, *, max_bytes: int, sized: bool
) -> Iterator[LoadedFile]:
    """Yield the images whose files can be read, in order; the others are counted.

    Args:
        files: Images with their files of labels.
        faults: Counts the images and the files that cannot be read.
        max_bytes: Largest size of a file of labels.
        sized: Whether the sizes of the images are read.

    Raises:
        InputError: If the storage does not respond.
    """

    def load(file: LabelledFile) -> LoadedFile | tuple[FaultKind, str]:
        try:
            content = None if file.labels is None else read_small(file.labels.uri, max_bytes)
            return LoadedFile(file, content, size_of_image(file.image) if sized else None)
        except BadImageError as error:
            return FaultKind.UNREADABLE_IMAGE, f"{file.image.uri}: {error.message}"
        except ValueError as error:
            return FaultKind.UNREADABLE_FILE, f"{file.place}: {error}"

    for loaded in read_ahead(load, files, threads=THREADS, max_ahead=2 * THREADS):
        if isinstance(loaded, LoadedFile):
            yield loaded
        else:
            faults.add(*loaded)
