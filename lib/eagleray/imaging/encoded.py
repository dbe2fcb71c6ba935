"""An encoded image as a caller holds it, as bytes.

    encoded_bytes(Path("rose.jpg"))
    encoded_bytes(np.fromfile("rose.jpg", np.uint8))

What is decoded already is refused: an array may be RGB or BGR, and a decoded image has lost what
its file says of orientation and colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = ["EncodedImage", "ReadableFile", "encoded_bytes", "require_sequence"]


@runtime_checkable
class ReadableFile(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> bytes:
        """Return what is left of it."""


EncodedImage = bytes | bytearray | memoryview | PathLike[str] | ReadableFile
"""An image file: its bytes, its path, or the open file."""


def encoded_bytes(image: object) -> bytes:
    """Return the bytes of an image file.

    Args:
        image: An `EncodedImage`, or anything else that holds bytes in one dimension, such as an
            array of uint8.

    Raises:
        TypeError: It is something else; the message says what is wanted.
        OSError: The file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, PathLike):
        return Path(image).read_bytes()
    if isinstance(image, BytesIO):
        return image.getvalue()  # wherever it stands: whoever has just written it is at its end
    if isinstance(image, ReadableFile):
        found = image.read()
        if isinstance(found, bytes):
            return found
        raise TypeError("an image file is open as text; open it with mode 'rb'")
    try:
        view = memoryview(image)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(_wanted(image)) from None
    if view.ndim != 1 or view.format not in ("B", "b", "c"):
        raise TypeError(_wanted(image))
    return view.tobytes()


def require_sequence(images: object) -> None:
    """Refuse a single image where several are wanted.

    Raises:
        TypeError: It is one, or no list.
    """
    if isinstance(images, bytes | bytearray | memoryview | str | PathLike | ReadableFile):
        raise TypeError(f"images is a list of images, not a {_name(images)}; write [image] for one")
    if not isinstance(images, Sequence):
        raise TypeError(f"images is a list of images, not a {_name(images)}")


def _wanted(image: object) -> str:
    if isinstance(image, str):
        return (
            "an image is the bytes of its file or the file's path, not a str; write Path(…) for it"
        )
    how = ""
    if hasattr(image, "save") or hasattr(image, "shape"):
        how = (
            "; what is decoded already must be encoded first, as by PIL's "
            "image.save(buffer, 'PNG') and buffer.getvalue()"
        )
    return f"an image is the bytes of its file or the file's path, not a {_name(image)}{how}"


def _name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
