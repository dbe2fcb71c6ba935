r"""Escapes characters in untrusted text that control a terminal or deceive a reader.

    escape_text("cat\x1b[2J.png")    # r"cat\x1b[2J.png"
    escape_json('"\u202e"')          # r'"\u202e"', which parses to the same text

Labels, file names, columns, notes and messages of other machines may contain any character. A
terminal obeys control characters, a bidirectional override changes the order in which a text is
shown, and names that differ in a zero-width character look alike. Text is therefore escaped before
it is shown: on the console, on pages, in metrics, in CSV files and in exceptions of the client.
Stored and sent text is unchanged.

Umlauts, Arabic, Hebrew, CJK and emoji are kept, with the joiners and variation selectors that they
need.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["ESCAPED_CELL_PATTERN", "escape_cell", "escape_json", "escape_text", "unescape_cell"]

# C0, DEL and C1; line and paragraph separators; bidirectional embeddings, overrides and isolates,
# deprecated ones included; lone surrogates.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff"
# Direction marks, and characters without width or ink: soft hyphen, joiners, fillers, invisible
# operators, interlinear annotations, variation selectors, byte order mark, tags, and formatting of
# shorthand and music.
_INVISIBLE = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2065\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
# The flags of England, Scotland and Wales are a black flag followed by tags.
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f"
_SUSPECT = re.compile(f"{_FLAG}|[{_CONTROL}{_INVISIBLE}]")
_SHORT_ESCAPES = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}

_NON_JOINER, _JOINER = "\u200c", "\u200d"
_SYMBOLS = frozenset({"So", "Sk", "Sm"})
_LETTERS = frozenset({"Lo", "Lm", "Mn", "Mc"})  # of scripts without case, and their marks
_VIRAMA = 9  # combining class of marks after which a joiner may end a word

ESCAPED_CELL_PATTERN = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{80}-\x{9f}\x{2028}\x{2029}\x{202a}-\x{202e}"
    r"\x{2066}-\x{206f}]|\r(?:[^\n]|$)|\\u[0-9a-f]{4}"
)
"""Pattern in RE2 syntax, as Arrow needs it, for texts that `escape_cell` may change."""

# A carriage return before a line feed is part of a line break.
_CELL_CONTROL = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f]|\r(?!\n)"
)
# Starts at the first of several backslashes, so that the search takes linear time.
_TO_ESCAPE = re.compile(rf"(?<!\\)(\\*+)(?:({_CELL_CONTROL})|(?<=\\)u([0-9a-f]{{4}}))")
_ESCAPED = re.compile(r"(?<!\\)(\\++)u([0-9a-f]{4})")
_CELL_CONTROL_RE = re.compile(_CELL_CONTROL)


def escape_text(text: str, *, keep: str = "") -> str:
    r"""Return a text with control, bidirectional and invisible characters escaped, as in `\x1b`.

    Args:
        text: Untrusted text, which may contain lone surrogates.
        keep: Control characters that are kept, such as a line break.
    """
    if text.isascii() and text.isprintable():
        return text

    def replace(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep or _is_legitimate(text, found) else _escape(found[0])

    return _SUSPECT.sub(replace, text)


def escape_json(text: str) -> str:
    """Return a JSON text with the same characters as JSON escapes; its values are unchanged.

    Args:
        text: JSON text; line breaks between its values are kept.
    """
    if text.isascii() and "\x7f" not in text:
        return text

    def replace(found: re.Match[str]) -> str:
        # A line break between values is kept; inside of them it is escaped already.
        is_text = found[0] in "\t\n\r" or _is_legitimate(text, found)
        return found[0] if is_text else _json_escape(found[0])

    return _SUSPECT.sub(replace, text)


def escape_cell(text: str) -> str:
    r"""Return a cell of a text table with control characters escaped reversibly, as in `\u001b`.

    Line breaks, tabs and zero-width characters are kept. Backslashes of existing escapes are
    doubled.
    """
    return _TO_ESCAPE.sub(_escaped, text)


def unescape_cell(text: str) -> str:
    """Undo `escape_cell`."""
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
    return _CELL_CONTROL_RE.fullmatch(chr(int(digits, 16))) is not None


def _is_legitimate(text: str, found: re.Match[str]) -> bool:
    """Whether a match is a flag, or an invisible character that its word or emoji needs."""
    index = found.start()
    if found.end() - index > 1:
        return True
    before, after = text[max(index - 1, 0) : index], text[index + 1 : index + 2]
    if _is_selector(text[index]):
        return before in tuple("#*0123456789") or _category(before) in {*_SYMBOLS, "Lo", "Po"}
    if text[index] not in (_JOINER, _NON_JOINER) or not before:
        return False
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if _is_selector(before):
        before = text[max(index - 2, 0) : index - 1]
    around = {_category(before), _category(after)}
    return around <= _LETTERS or (text[index] == _JOINER and around <= _SYMBOLS)


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _category(character: str) -> str:
    return unicodedata.category(character) if character else ""


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return _SHORT_ESCAPES.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
