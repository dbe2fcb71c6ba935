"""Sources of the files below a folder or prefix, and of those that match a glob pattern."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eagleray.io import storage
from eagleray.sources.found_files import open_files
from eagleray.sources.listing import InputSpec, OpenedSource
from eagleray.sources.skipped import SkippedFiles, skipped_kind
from eagleray.sources.source import Source

__all__ = ["FOLDER", "PATTERN"]

_WILDCARD = re.compile(r"[*?\[]")
# Any part of a path that is skipped, for Arrow's kernels.
_SKIPPED = f"(^|/)({'|'.join(storage.SKIPPED_KINDS.values())})(/|$)"


def _open_folder(location: str, spec: InputSpec, skipped: SkippedFiles) -> OpenedSource:
    """Open every file at any depth, in name order, but those with names of programs and systems."""
    folder = storage.absolute(location).rstrip("/") or "/"
    root = f"{folder.rstrip('/')}/"
    listed = storage.list_tables(folder, spec.policy)
    files = (_without_skipped(table, root, skipped) for table in listed)
    nothing = f"Folder {location} holds no files; name one that holds images."
    return open_files(location, root, files, spec, skipped, nothing)


def _open_pattern(location: str, spec: InputSpec, skipped: SkippedFiles) -> OpenedSource:
    """Open every file that matches, in name order, but those with names of programs and systems.

    A name that the pattern spells out is not skipped, and hidden ones are not if a part of the
    pattern begins with a dot.
    """
    pattern = storage.absolute(location)
    root = _WILDCARD.split(pattern, maxsplit=1)[0].rpartition("/")[0] + "/"
    parts = pattern.removeprefix(root).split("/")
    literal_parts = frozenset(part for part in parts if not _WILDCARD.search(part))
    files = storage.glob_tables(location, spec.policy)
    if not any(part.startswith(".") for part in parts):
        files = (_without_skipped(table, root, skipped, literal_parts) for table in files)
    nothing = f"No file matches the pattern {location}."
    return open_files(location, root, files, spec, skipped, nothing)


def _without_skipped(
    files: pa.Table, root: str, skipped: SkippedFiles, named: Collection[str] = ()
) -> pa.Table:
    """Remove files whose name, or that of a folder below the root, is skipped."""
    below = pc.utf8_slice_codeunits(files.column("uri"), len(root))
    mask = pc.match_substring_regex(below, _SKIPPED)
    if not pc.any(mask).as_py():
        return files
    keep = np.ones(files.num_rows, bool)
    for index in pc.indices_nonzero(mask).to_pylist():
        path = below[index].as_py()
        kind = skipped_kind(path, named)
        if kind is not None:
            skipped.add(kind, path)
            keep[index] = False
    return files.filter(pa.array(keep))


def _is_pattern(location: str) -> bool:
    return bool(_WILDCARD.search(location)) and not storage.exists(location)


FOLDER = Source("folder", storage.is_folder, _open_folder)
PATTERN = Source("pattern", _is_pattern, _open_pattern)
