"""Names of files and folders that are not inputs. Whoever skips one counts it and reports it.

Cameras write names like `_DSC0001.JPG` and people sort images into folders like `_sorted`, so an
underscore alone says nothing.
"""

from __future__ import annotations

import re

__all__ = ["SKIPPED_KINDS", "is_skipped_name", "skipped_name_kind"]

SKIPPED_KINDS = {
    # `.` and `..`, which S3 keys may have as parts, are names like others.
    "hidden": r"\.(?:[^./][^/]*|\.[^/]+)",
    "system": (
        r"(?i:thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini|\$recycle\.bin"
        r"|\#recycle|system volume information|@eadir)"
    ),
    # What Eagleray, Spark, Hadoop, Delta and zip programs of macOS write beside or around data.
    "marker": (
        r"_eagleray|_manifest\.json|_failures\.parquet|_SUCCESS|_FAILURE|_temporary|_metadata"
        r"|_common_metadata|_delta_log|__MACOSX|_(?:committed|started)_\d+"
    ),
}
"""Regular expressions, which Arrow understands too, of one name (a part of a path) of each kind."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in SKIPPED_KINDS.items()}


def skipped_name_kind(name: str) -> str | None:
    """Return of which kind (of `SKIPPED_KINDS`) a file or folder is; None where it is an input.

    Args:
        name: One part of a path.
    """
    return next((kind for kind, known in _PATTERNS.items() if known.fullmatch(name)), None)


def is_skipped_name(name: str) -> bool:
    """Whether a name belongs to the system or to a program, and not to a user's images.

    Args:
        name: One part of a path. `.` and `..`, which S3 keys may have as parts, are ordinary names.
    """
    return skipped_name_kind(name) is not None
