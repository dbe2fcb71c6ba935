"""Counts the images of a job that waits, as far as that is quick."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from eagleray.core.errors import EaglerayError
from eagleray.io import storage
from eagleray.scheduling.queue import SMALL_JOB

__all__ = ["count_images"]

_PATTERN: Final = frozenset("*?[")


def count_images(locations: Sequence[str]) -> int | None:
    """Return the number of files in some folders, if it is small.

    Args:
        locations: Files, folders or URIs.

    Returns:
        The number; None if the job is not small, or its images are not files in folders.
    """
    count = 0
    for location in locations:
        if location.startswith("http") or _PATTERN & set(location):
            return None
        try:
            if not storage.is_folder(location):
                return None  # a table or an archive may list any number
            files = storage.list_files(location)
            count += sum(1 for _ in itertools.islice(files, SMALL_JOB + 1))
        except (OSError, EaglerayError):
            return None
        if count > SMALL_JOB:
            return None
    return count
