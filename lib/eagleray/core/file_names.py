"""Names that an operating system allows, as text."""

from __future__ import annotations

__all__ = ["escape_file_name"]


def escape_file_name(name: str) -> str:
    r"""Return a name as text that every table can hold: a byte that is no UTF-8 becomes `\xe9`.

    Half of a surrogate pair, which JSON may hold, becomes `\ud83d`.
    """
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
