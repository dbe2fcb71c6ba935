"""Converts file names of the operating system to valid Unicode text."""

from __future__ import annotations

__all__ = ["escape_file_name"]


def escape_file_name(name: str) -> str:
    r"""Return a file name as valid Unicode, with bytes that are not UTF-8 escaped, as in `\xe9`.

    A lone surrogate, as JSON may contain it, becomes `\ud83d`.
    """
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
