"""Reads the fields of a training specification that are written in several forms.

Class weights are `none`, `balanced` or weights by label, and tags are texts or a mapping.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["ClassWeights", "Tags", "class_weight", "require_tags"]

_TAG_KEY = re.compile(r"[\w.: -][\w./: -]{0,249}")
_RESERVED_TAGS = ("mlflow.", "eagleray.")


def _read_class_weights(value: Any) -> str | tuple[str, ...]:
    """Return `none`, `balanced` or texts such as `cat=2`.

    One text stands for a list of one, and a mapping of a YAML file for its items.
    """
    texts = [value] if isinstance(value, str) else value
    if isinstance(value, Mapping):
        texts = [f"{label}={weight}" for label, weight in value.items()]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("take none, balanced, or weights such as [cat=2, dog=1]")
    if len(texts) == 1 and texts[0] in ("none", "balanced"):
        return str(texts[0])
    labels = [label for label, _ in map(class_weight, texts)]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"label {twice!r} has two weights; give it one")
    return tuple(texts) or "none"


def class_weight(text: str) -> tuple[str, float]:
    """Read a label and its weight from a text such as `cat=2`.

    Raises:
        ValueError: If it is not LABEL=WEIGHT with a weight above 0.
    """
    label, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not label or not 0 < weight < math.inf:
        raise ValueError(f"{text!r} is not LABEL=WEIGHT with a weight above 0, as in cat=2")
    return label, weight


def _read_tags(value: Any) -> Any:
    """Return texts such as `team=vision`; in a YAML file, tags may be a mapping.

    Its values are texts as YAML writes them: `true`, `3`, `2026-01-31`.
    """
    if not isinstance(value, Mapping):
        return [value] if isinstance(value, str) else value
    nested = [str(key) for key, one in value.items() if isinstance(one, Mapping | list)]
    if nested:
        raise ValueError(f"take one text per tag; {', '.join(nested)} has several")
    split = [key for key in map(_as_text, value) if "=" in key]
    if split:
        raise ValueError(f"take keys without =, not {_quoted(split)}")
    return [f"{_as_text(key)}={_as_text(one)}" for key, one in value.items()]


def _as_text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def require_tags(tags: Sequence[str]) -> None:
    """Check the tags of a run.

    Raises:
        ValueError: If some are not KEY=VALUE, reserved or given twice; the message names them.
    """
    keys = [tag.partition("=")[0] for tag in tags]
    pairs = list(zip(tags, keys, strict=True))
    malformed = [t for t, key in pairs if "=" not in t or not _TAG_KEY.fullmatch(key)]
    reserved = [tag for tag, key in pairs if key.startswith(_RESERVED_TAGS)]
    repeated = dict.fromkeys(key for key in keys if keys.count(key) > 1)
    faults = []
    if malformed:
        faults.append(
            "tags must be KEY=VALUE, where the key has up to 250 letters, digits, spaces and "
            f"_ - . : / in it, not {_quoted(malformed)}"
        )
    if reserved:
        faults.append(f"tags must not begin with mlflow. or eagleray., as in {_quoted(reserved)}")
    if repeated:
        faults.append(f"tags must name each key once, and repeat {_quoted(repeated)}")
    if faults:
        raise ValueError("; ".join(faults))


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(map(repr, texts))


Tags = Annotated[tuple[str, ...], BeforeValidator(_read_tags)]
ClassWeights = Annotated[tuple[str, ...] | str, BeforeValidator(_read_class_weights)]
