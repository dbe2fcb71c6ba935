"""Names of files and folders that are not inputs. Whoever skips one counts it and reports it.

Cameras write names like `_DSC0001.JPG` and people sort images into folders like `_sorted`, so an
underscore alone says nothing.
"""

from __future__ import annotations

import re

__all__ = ["is_skipped_name"]

_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
# What Eagleray, Spark, Hadoop, Delta and zip programs of macOS write beside or around data.
_MARKERS = re.compile(
    r"_eagleray|_SUCCESS|_temporary|_metadata|_common_metadata|_delta_log|__MACOSX"
    r"|_(?:committed|started)_\d+"
)


def is_skipped_name(name: str) -> bool:
    """Whether a name belongs to the system or to a program, and not to somebody's images.

    Args:
        name: One part of a path. `.` and `..`, which S3 keys may have as parts, are ordinary names.
    """
    if name in (".", ".."):
        return False
    return (
        name.startswith(".")
        or name.lower() in _SYSTEM_FILES
        or _MARKERS.fullmatch(name) is not None
    )
