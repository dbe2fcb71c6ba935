"""Recognises names of files and folders that are skipped as inputs; callers count and report them.

Cameras write names like `_DSC0001.JPG` and people sort images into folders like `_sorted`, so a
leading underscore alone does not make a name skipped.
"""

from __future__ import annotations

import re

__all__ = ["SKIPPED_KINDS", "is_skipped_name", "skipped_name_kind"]

SKIPPED_KINDS = {
    # `.` and `..`, which S3 keys may contain, are ordinary names.
    "hidden": r"\.(?:[^./][^/]*|\.[^/]+)",
    "system": (
        r"(?i:thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini|\$recycle\.bin"
        r"|\#recycle|system volume information|@eadir)"
    ),
    # Files that Eagleray, Spark, Hadoop, Delta and macOS's zip write next to data.
    "marker": (
        r"_eagleray|_manifest\.json|_failures\.parquet|_SUCCESS|_FAILURE|_temporary|_metadata"
        r"|_common_metadata|_delta_log|__MACOSX|_(?:committed|started)_\d+"
    ),
}
"""Regular expressions (valid for Python and RE2) for one component of a path, by kind."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in SKIPPED_KINDS.items()}


def skipped_name_kind(name: str) -> str | None:
    """Return the kind of a skipped file or folder, a key of `SKIPPED_KINDS`; None for an input.

    Args:
        name: One component of a path.
    """
    return next((kind for kind, known in _PATTERNS.items() if known.fullmatch(name)), None)


def is_skipped_name(name: str) -> bool:
    """Whether a file or folder is skipped, as it belongs to the system or to a program.

    Args:
        name: One component of a path.
    """
    return skipped_name_kind(name) is not None
