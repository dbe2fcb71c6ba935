r"""Makes text of others safe to show: what steers a terminal or deceives a reader is an escape.

    escape_text("cat\x1b[2J.png")    # r"cat\x1b[2J.png"
    escape_json('"\u202e"')     # r'"\u202e"', which reads back as the same text

Labels, file names, columns, notes and messages of other machines may hold any character. A terminal
obeys control characters, a bidirectional override shows a text in another order than it is written
in, and two names that differ in a character without width look alike. Whoever writes to a medium
that people read passes its text through here: the console, the pages, the metrics, the CSV files
and the exceptions of the client. What is stored or sent stays as it is.

Umlauts, Arabic, Hebrew, CJK and emoji stay as they are, with the joiners and variation selectors
that their words and pictures need.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["ESCAPED_CELL_PATTERN", "escape_cell", "escape_json", "escape_text", "unescape_cell"]

# C0, DEL and C1; line and paragraph separators; bidirectional embeddings, overrides, isolates and
# their deprecated relatives; halves of surrogate pairs.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff"
# Marks of direction, and what has no width or no ink: soft hyphen, joiners, fillers, invisible
# operators, interlinear annotations, variation selectors, byte order mark, tags, and the formatting
# of shorthand and music.
_UNSEEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2065\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
# The flags of England, Scotland and Wales are a black flag and tags that spell a region.
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f"
_SUSPECT = re.compile(f"{_FLAG}|[{_CONTROL}{_UNSEEN}]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}

_NON_JOINER, _JOINER = "\u200c", "\u200d"
_PICTURES = frozenset({"So", "Sk", "Sm"})
_LETTERS = frozenset({"Lo", "Lm", "Mn", "Mc"})  # of scripts without capitals, and their marks
_VIRAMA = 9  # the combining class of marks after which a joiner may end a word

ESCAPED_CELL_PATTERN = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{80}-\x{9f}\x{2028}\x{2029}\x{202a}-\x{202e}"
    r"\x{2066}-\x{206f}]|\r(?:[^\n]|$)|\\u[0-9a-f]{4}"
)
"""Finds in RE2's syntax, which Arrow has, the texts that `escape_cell` may change."""

# A carriage return is part of a line break where a line feed follows.
_IN_CELLS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f]|\r(?!\n)"
# From the first of its backslashes, so that a text of nothing else is read once.
_TO_ESCAPE = re.compile(rf"(?<!\\)(\\*+)(?:({_IN_CELLS})|(?<=\\)u([0-9a-f]{{4}}))")
_ESCAPED = re.compile(r"(?<!\\)(\\++)u([0-9a-f]{4})")
_STANDS_FOR = re.compile(_IN_CELLS)


def escape_text(text: str, *, keep: str = "") -> str:
    r"""Return a text with every character that steers or deceives written out, as `\x1b`.

    Args:
        text: Of others; halves of surrogate pairs may be in it.
        keep: Control characters that the medium takes as text, such as a line break.
    """
    if text.isascii() and text.isprintable():
        return text

    def shown(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep or _belongs(text, found) else _escape(found[0])

    return _SUSPECT.sub(shown, text)


def escape_json(text: str) -> str:
    """Return a JSON text with such characters as escapes of JSON: it reads back as the same.

    Args:
        text: JSON; the line breaks between its values stay.
    """
    if text.isascii() and "\x7f" not in text:
        return text

    def shown(found: re.Match[str]) -> str:
        # A line break between values stays; within them json has escaped it.
        is_text = found[0] in "\t\n\r" or _belongs(text, found)
        return found[0] if is_text else _json_escape(found[0])

    return _SUSPECT.sub(shown, text)


def escape_cell(text: str) -> str:
    r"""Return a cell of a text table with control characters as `\u001b`, which can be undone.

    Line breaks and tabs stay, and so do characters without width. A text that holds such an escape
    already gets more backslashes there.
    """
    return _TO_ESCAPE.sub(_escaped, text)


def unescape_cell(text: str) -> str:
    """Return what `escape_cell` was given."""
    return _ESCAPED.sub(_unescaped, text) if "\\u" in text else text


def _escaped(found: re.Match[str]) -> str:
    backslashes, control, digits = found.groups()
    if control is not None:
        return f"{backslashes * 2}\\u{ord(control):04x}"
    return f"{backslashes * 2}u{digits}" if _is_escape(digits) else found[0]


def _unescaped(found: re.Match[str]) -> str:
    backslashes, digits = found.groups()
    if not _is_escape(digits):
        return found[0]
    half, is_odd = divmod(len(backslashes), 2)
    return "\\" * half + (chr(int(digits, 16)) if is_odd else f"u{digits}")


def _is_escape(digits: str) -> bool:
    return _STANDS_FOR.fullmatch(chr(int(digits, 16))) is not None


def _belongs(text: str, found: re.Match[str]) -> bool:
    """Whether what was found is a flag, or a character without width of a word or a picture."""
    place = found.start()
    if found.end() - place > 1:
        return True
    before, after = text[max(place - 1, 0) : place], text[place + 1 : place + 2]
    if _is_selector(text[place]):
        return before in tuple("#*0123456789") or _category(before) in {*_PICTURES, "Lo", "Po"}
    if text[place] not in (_JOINER, _NON_JOINER) or not before:
        return False
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if _is_selector(before):
        before = text[max(place - 2, 0) : place - 1]
    around = {_category(before), _category(after)}
    return around <= _LETTERS or (text[place] == _JOINER and around <= _PICTURES)


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _category(character: str) -> str:
    return unicodedata.category(character) if character else ""


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
