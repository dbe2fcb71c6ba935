"""Normalises labels, parses lists of labels, and finds labels that differ only in spelling."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["MISSING_VALUES", "alike", "clean_label", "labels_of_list", "look_alike", "parse_list"]

MISSING_VALUES = frozenset(
    (
        "nan",
        "NaN",
        "-nan",
        "-NaN",
        "NA",
        "N/A",
        "n/a",
        "#N/A",
        "#NA",
        "<NA>",
        "null",
        "NULL",
        "None",
    )
)
"""Texts that programs write for a missing value."""

_AROUND = re.compile(r"\A[\s\ufeff\u200b-\u200d\u2060]+|[\s\ufeff\u200b-\u200d\u2060]+\Z")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?", re.ASCII)
_ITEM = r"(?:'[^']*'|\"[^\"]*\"|[\d.]+)"
_NUMPY_LIST = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]")


def clean_label(text: str) -> str:
    """Return a label in Unicode's form NFC, without white space and invisible signs around it."""
    if text.isascii() and text == text.strip():
        return text
    return _AROUND.sub("", unicodedata.normalize("NFC", text))


def parse_list(text: str) -> list[Any] | None:
    """Return the values of a list written as JSON or Python writes it; None for any other text.

    Raises:
        ValueError: If it is a list as NumPy prints it, without commas.
    """
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        if _NUMPY_LIST.fullmatch(text):
            raise ValueError("is a list as NumPy prints it; write lists as JSON") from None
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, list) else None


def labels_of_list(values: Sequence[Any]) -> list[str]:
    """Return the labels of a list's values, each of them once.

    Raises:
        ValueError: If a value is missing, or the list is not a list of labels.
    """
    texts = []
    for value in values:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError("has a missing value")
        if isinstance(value, bool):
            texts.append(str(value).lower())
        elif isinstance(value, float) and value.is_integer():
            texts.append(str(int(value)))
        elif isinstance(value, str | int | float):
            texts.append(clean_label(str(value)))
        else:
            raise ValueError("has values that are lists or records themselves")
    if len(set(texts)) < len(texts) and set(texts) <= {"0", "1"}:
        raise ValueError(
            "is a row of zeros and ones; make a column of each label (--label-columns)"
        )
    return list(dict.fromkeys(filter(None, texts)))


def look_alike(text: str, labels: Iterable[str]) -> str | None:
    """Return the first of some labels that differs from a text only in how it is written."""
    key = _key(text)
    return next((label for label in labels if label != text and _key(label) == key), None)


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Return groups of labels that differ only in how they are written, as `Cat` and `cat` do."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_key(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def _key(label: str) -> str:
    """Return a key that is the same for `Cat` and `cat`, `fox-red` and `fox red`, `1` and `1.0`."""
    plain = unicodedata.normalize("NFKC", label).casefold().strip()
    if _NUMBER.fullmatch(plain):
        return repr(float(plain))
    return " ".join(re.split(r"[\s_-]+", plain))
