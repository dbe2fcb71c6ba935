"""Describes the outputs of exported models."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ExportedOutput"]


@dataclass(frozen=True, slots=True)
class ExportedOutput:
    """An output of an exported model, float32.

    Attributes:
        name: Name of the output.
        shape: Its shape for one image; a letter stands for a length that the network decides.
        meaning: What its numbers are, as sentences.
    """

    name: str
    shape: tuple[int | str, ...]
    meaning: str
