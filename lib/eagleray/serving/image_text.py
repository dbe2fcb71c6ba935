"""Images that callers send as text: base64 as their languages write it, and data URLs.

image_of_text("iVBORw0KGgo…")                       # padded or not, URL-safe or not
image_of_text("data:image/png;base64,iVBORw0KGgo…")
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from eagleray.core.errors import InputError

__all__ = ["image_of_text"]

_LINE_BREAK = re.compile(r"\s*[\r\n\t]\s*")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/")


def image_of_text(text: str) -> bytes:
    """Return the bytes that a text stands for.

    Args:
        text: Base64, with line breaks, without padding or of the URL-safe kind; or a data URL.

    Raises:
        InputError: It is neither.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma:
            raise InputError("A data URL has a comma before its data.")
        if not text.isascii():
            raise InputError("A data URL has no characters beyond ASCII.")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text)
        text = unquote(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _of_another_kind(text)


def _of_another_kind(text: str) -> bytes:
    plain = _LINE_BREAK.sub("", text.strip()).rstrip("=").translate(_URL_SAFE)
    if "://" in text[:64]:
        why = "it is an address, which is not taken here"
    elif foreign := _FOREIGN.search(plain):
        why = f"it has the character {foreign[0]!r}"
        if foreign[0] == " ":
            why += ", which a + becomes that is sent unescaped"
    elif len(plain) % 4 == 1:
        why = "its end is missing"
    else:
        return base64.b64decode(plain + "=" * (-len(plain) % 4))
    raise InputError(f"An image's text is no base64: {why}.")
