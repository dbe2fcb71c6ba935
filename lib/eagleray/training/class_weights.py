"""Reads the class weights of a specification: `none`, `balanced`, or weights by label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["ClassWeights", "read_class_weight"]


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
    labels = [label for label, _ in map(read_class_weight, texts)]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"label {twice!r} has two weights; give it one")
    return tuple(texts) or "none"


def read_class_weight(text: str) -> tuple[str, float]:
    """Return label and weight of a text such as `cat=2`.

    Raises:
        ValueError: If it is not one, or the weight is not above 0.
    """
    label, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not label or not 0 < weight < math.inf:
        raise ValueError(f"{text!r} is not LABEL=WEIGHT with a weight above 0, as in cat=2")
    return label, weight


ClassWeights = Annotated[tuple[str, ...] | str, BeforeValidator(_read_class_weights)]
