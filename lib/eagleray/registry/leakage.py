"""Finds the images of an evaluation that the evaluated version, or an ancestor, was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from eagleray.core.errors import EaglerayError
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.leakage import Leakage
from eagleray.registry.lineage import read_split_artifact
from eagleray.registry.registry import ModelVersion, Registry

__all__ = ["find_leakage"]

LEARNED = ("train", "validation")
"""The splits that a model learns from: weights from one, the best epoch and settings from the
other."""
_MAX_ANCESTORS = 100


def find_leakage(registry: Registry, version: ModelVersion, images: LabelledImages) -> Leakage:
    """Find the images that a version, or one that it descends from, learned from.

    An image is the same if its location is, and its file has not changed since, as far as that is
    known. A copy at another location is not recognised. Versions whose runs keep no table of images
    are passed over.

    Args:
        registry: The registry.
        version: The evaluated version.
        images: The images that it is evaluated on.

    Raises:
        InputError: If a run's table of images cannot be read.
    """
    leaked = np.zeros(len(images), bool)
    uses: dict[tuple[str, str], int] = {}
    for one in _line_of(registry, version):
        for split, rows in _rows_learned(registry, one, images).items():
            uses[one.reference, split] = len(rows)
            leaked[rows] = True
    return Leakage(version.reference, len(images), np.flatnonzero(leaked), uses)


def _rows_learned(
    registry: Registry, version: ModelVersion, images: LabelledImages
) -> dict[str, list[int]]:
    """Return the rows of the images that a version itself learned from, by split."""
    used = read_split_artifact(registry, version, filters=pc.field("uri").isin(images.uris))
    if used is None:
        return {}
    columns = (used.column(name).to_pylist() for name in ("uri", "version", "split"))
    known = {uri: (split, then) for uri, then, split in zip(*columns, strict=True)}
    known = {uri: pair for uri, pair in known.items() if pair[0] in LEARNED}
    found: dict[str, list[int]] = {}
    for row, (uri, now) in enumerate(zip(images.uris, images.versions, strict=True)):
        split, then = known.get(uri, ("", ""))
        if split and (not now or not then or now == then):
            found.setdefault(split, []).append(row)
    return found


def _line_of(registry: Registry, version: ModelVersion) -> Iterator[ModelVersion]:
    """Yield a version, its parent (initial weights) and its teacher, theirs, and so on."""
    seen: set[str] = set()
    waiting: list[ModelVersion | None] = [version]
    while waiting and len(seen) < _MAX_ANCESTORS:
        current = waiting.pop(0)
        if current is None or current.digest in seen:
            continue
        yield current
        seen.add(current.digest)
        try:
            lineage = registry.manifest(current).lineage
        except EaglerayError:  # its files are lost; what it descends from is not known
            continue
        waiting += [
            registry.version_of_package(digest)
            for digest in (lineage.parent, lineage.teacher)
            if digest is not None
        ]
