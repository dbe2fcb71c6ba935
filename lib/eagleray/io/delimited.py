"""Detects the encoding, separator and header of delimited text (CSV, TSV).

They are found from the first bytes, so that a text that would be misread is refused with a sentence
on how to save it.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.io.file_kinds import describe_file_kind, is_image_name

__all__ = ["SAMPLE_BYTES", "Delimited", "describe_delimited", "not_utf8", "require_utf8"]

SAMPLE_BYTES = 2**18
"""Bytes of a file that `describe_delimited` should see."""

_SEPARATORS = (",", ";", "\t", "|")
_NAMES = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}
_SAMPLE_ROWS = 100
_LOCATION = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|\.{0,2}/|[A-Za-z]:\\)")
_EXCEL_HINT = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # a line that Excel writes and obeys
_MAX_SHOWN = 60
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, slots=True)
class Delimited:
    """The form of a delimited text.

    Attributes:
        separator: Separator between columns.
        skip_rows: Number of lines before the header.
        note: Clause for the user on a form that the file's name does not suggest; None without one.
    """

    separator: str
    skip_rows: int = 0
    note: str | None = None


def describe_delimited(
    start: bytes, location: str, *, separator: str, whole: bool = True
) -> Delimited:
    """Detect the form of a delimited text.

    Args:
        start: First `SAMPLE_BYTES` bytes of the text.
        location: Location of the file, for messages.
        separator: Separator that the file's name suggests. Another one is detected if the header
            lacks it and all rows agree on the other.
        whole: Whether `start` is the whole text.

    Raises:
        InputError: If it is empty, no text, in another encoding than UTF-8, or has no header.
    """
    if not start.removeprefix(codecs.BOM_UTF8).strip():
        raise InputError(
            f"{location} is empty; a table has a line of column names and a line for each image."
        )
    text = require_utf8(start, location, whole=whole)
    hint = _EXCEL_HINT.match(text)
    if hint:
        return Delimited(hint[1], skip_rows=1)
    rows = {
        candidate: list(_rows(text, candidate, whole=whole))
        for candidate in dict.fromkeys((separator, *_SEPARATORS))
    }
    found = separator
    if len(rows[separator][0]) == 1:
        found = next((other for other in rows if _is_table(rows[other])), separator)
    _require_header(rows[found][0], location)
    note = None
    if found != separator:
        note = f"columns are separated by {_NAMES[found]} and not by {_NAMES[separator]}"
    return Delimited(found, note=note)


def _rows(text: str, separator: str, *, whole: bool) -> Iterator[list[str]]:
    """Yield the first rows, without one that the end of the sample may cut."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=False)
    try:
        rows = list(itertools.islice((row for row in reader if row), _SAMPLE_ROWS))
    except csv.Error:  # a cell larger than that module allows
        rows = []
    if not whole and len(rows) < _SAMPLE_ROWS:
        rows = rows[:-1]
    return iter(rows or [[text.partition("\n")[0]]])


def _is_table(rows: list[list[str]]) -> bool:
    return len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows)


def _require_header(names: list[str], location: str) -> None:
    """Refuse a first line that looks like a row, whose image would be lost."""
    for name in names:
        cell = name.strip()
        if is_image_name(cell) or _LOCATION.match(cell) or cell.startswith("data:"):
            raise InputError(
                f"{location} seems to have no header: its first line holds {_shown(cell)!r}, which "
                "looks like an image and not like the name of a column. Put a line of names above "
                "it, such as `path`, so that no image is lost."
            )


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def require_utf8(start: bytes, location: str, *, whole: bool = True) -> str:
    """Return the first bytes of a file as text, without a byte order mark.

    Args:
        start: The bytes.
        location: For messages.
        whole: Whether the file ends there; otherwise its last character may be cut.

    Raises:
        InputError: If it is another kind of file by its first bytes, or in another encoding.
    """
    kind = describe_file_kind(start)
    if kind is not None:
        hint = " (as Excel workbooks are)" if kind == "a zip archive" else ""
        raise InputError(
            f"{location} is {kind}{hint}, and no text; name it after what it is, or convert it."
        )
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if encoding is None and b"\0" in start:
        evens, odds = start[::2].count(0), start[1::2].count(0)
        if max(evens, odds) < len(start) // 4:
            raise InputError(f"{location} holds zero bytes, as no text does; is it a table at all?")
        encoding = "UTF-16"
    if encoding is not None:
        raise InputError(
            f'{location} is in {encoding}; save it in UTF-8 (Excel calls that "CSV UTF-8").'
        )
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(start, final=whole)
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(start, error.start, location)) from None


def not_utf8(content: bytes, place: int, location: str, *, lines_before: int = 0) -> str:
    """Return the sentence for a text in an encoding of one byte for each letter.

    Args:
        content: Bytes of it, from the start of a line on.
        place: Of the first byte in `content` that is not UTF-8.
        location: For messages.
        lines_before: Lines of the file before `content`.
    """
    line = lines_before + content.count(b"\n", 0, place) + 1
    around = content[content.rfind(b"\n", 0, place) + 1 :].split(b"\n", 1)[0]
    words = _shown(around.decode("cp1252", "replace").strip())
    return (
        f"Line {line} of {location} is not UTF-8 but perhaps Windows-1252 or Latin-1 (as such it "
        f"reads {words!r}); save the file in UTF-8."
    )
