"""Labelled images without files."""

from __future__ import annotations

from eagleray.data.labelled import (
    LabelledImages,
)


def labelled(**counts: int) -> LabelledImages:
    texts = tuple(label for label, count in counts.items() for _ in range(count))
    uris = tuple(f"/images/{index}.png" for index in range(len(texts)))
    return LabelledImages(uris, texts, ("1",) * len(texts))
