"""Decodes images that callers send as text: the variants of base64, and data URLs.

decode_image_text("iVBORw0KGgo…")                   # padded or not, URL-safe or not
decode_image_text("data:image/png;base64,iVBORw0KGgo…")
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from eagleray.core.errors import InputError

__all__ = ["decode_image_text"]

_LINE_BREAK = re.compile(r"\s*[\r\n\t]\s*")
_INVALID = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/")


def decode_image_text(text: str) -> bytes:
    """Return the bytes that a text encodes.

    Args:
        text: A data URL, or base64, possibly with line breaks, unpadded, or URL-safe.

    Raises:
        InputError: If the text is neither.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma:
            raise InputError("A data URL must have a comma before its data.")
        if not text.isascii():
            raise InputError("A data URL must be ASCII text.")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text)
        text = unquote(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _decode_leniently(text)


def _decode_leniently(text: str) -> bytes:
    plain = _LINE_BREAK.sub("", text.strip()).rstrip("=").translate(_URL_SAFE)
    if "://" in text[:64]:
        fault = "it is an address, which is not accepted here"
    elif invalid := _INVALID.search(plain):
        fault = f"it has the character {invalid[0]!r}"
        if invalid[0] == " ":
            fault += "; a + that is not escaped arrives as a space"
    elif len(plain) % 4 == 1:
        fault = "its end is missing"
    else:
        return base64.b64decode(plain + "=" * (-len(plain) % 4))
    raise InputError(f"The text of an image is not base64: {fault}.")
