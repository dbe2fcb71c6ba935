"""Converts an encoded image in any form that callers pass to bytes.

    encoded_bytes(Path("rose.jpg"))
    encoded_bytes(np.fromfile("rose.jpg", np.uint8))

Decoded images are rejected: an array may be RGB or BGR, and has lost its orientation and colour
profile.
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
    """A file opened for reading in binary mode."""

    def read(self) -> bytes:
        """Return the rest of the file."""


EncodedImage = bytes | bytearray | memoryview | PathLike[str] | ReadableFile
"""An image file: its bytes, its path, or the open file."""


def encoded_bytes(image: object) -> bytes:
    """Return the bytes of an image file.

    Args:
        image: An `EncodedImage`, or another one-dimensional buffer of bytes, such as an array of
            uint8.

    Raises:
        TypeError: If it is something else; the message says what is expected.
        OSError: If the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, PathLike):
        return Path(image).read_bytes()
    if isinstance(image, BytesIO):
        return image.getvalue()  # independent of the position, which is at the end after writing
    if isinstance(image, ReadableFile):
        content = image.read()
        if isinstance(content, bytes):
            return content
        raise TypeError("an image file is open as text; open it with mode 'rb'")
    try:
        view = memoryview(image)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(_type_error_message(image)) from None
    if view.ndim != 1 or view.format not in ("B", "b", "c"):
        raise TypeError(_type_error_message(image))
    return view.tobytes()


def require_sequence(images: object) -> None:
    """Check that an argument is a list of images and not a single image.

    Raises:
        TypeError: If it is a single image, or not a list.
    """
    if isinstance(images, bytes | bytearray | memoryview | str | PathLike | ReadableFile):
        raise TypeError(f"images is a list of images, not a {_name(images)}; write [image] for one")
    if not isinstance(images, Sequence):
        raise TypeError(f"images is a list of images, not a {_name(images)}")


def _type_error_message(image: object) -> str:
    if isinstance(image, str):
        return (
            "an image is the bytes of its file or the file's path, not a str; write Path(…) for it"
        )
    hint = ""
    if hasattr(image, "save") or hasattr(image, "shape"):
        hint = (
            "; decoded images must be encoded first, for example by PIL's "
            "image.save(buffer, 'PNG') and buffer.getvalue()"
        )
    return f"an image is the bytes of its file or the file's path, not a {_name(image)}{hint}"


def _name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
