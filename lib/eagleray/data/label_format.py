"""Defines what a label format reads from listed inputs: for each labelled image, its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["MAX_INVALID", "SPLIT_WORDS", "Labels"]

MAX_INVALID = 0.1
"""Share of invalid objects, and of invalid images, that is left out by default."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words that stand for a split in folders and columns, in lower case, as in Hugging Face's image
folders."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of listed inputs.

    Attributes:
        rows: Numbers of the rows that have a label, ascending.
        labels: Label of each of these rows.
        splits: `train`, `validation` or `test` for each of these rows; empty without such splits.
        attributes: The other columns of a table by name, as text, for each of these rows.
        notes: Sentences on how the labels were read, and what was skipped.
    """

    rows: Sequence[int]
    labels: tuple[str, ...]
    splits: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
