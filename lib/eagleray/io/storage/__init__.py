"""Reads, writes and lists local paths and object stores; the only package that accesses storage.

Locations are `str`: a `Path` would drop the second slash of `s3://`. A location without a scheme is
a local path, taken literally: no percent-decoding, no `::` chaining, no glob unless a function says
so. Transient errors are retried (`retry.py` says for how long), and nothing is cached. All
functions are thread-safe.
"""

from __future__ import annotations

from eagleray.io.storage.errors import StorageUnavailableError
from eagleray.io.storage.listing import (
    LISTING_SCHEMA,
    FileInfo,
    file_info,
    list_files,
    list_tables,
    version_of,
)
from eagleray.io.storage.locations import absolute, is_remote, join, name_of
from eagleray.io.storage.path_policy import PathPolicy, is_within, require_prefix
from eagleray.io.storage.patterns import glob_files, glob_tables
from eagleray.io.storage.reading import open_seekable, read_bytes, read_range
from eagleray.io.storage.remote import S3Options, use_s3, using_s3
from eagleray.io.storage.skipped_names import SKIPPED_KINDS, is_skipped_name, skipped_name_kind
from eagleray.io.storage.stat import exists, is_folder, size_of
from eagleray.io.storage.writing import (
    delete,
    put_atomic,
    put_if_absent,
    remove_empty_folder,
    remove_tree,
)

__all__ = [
    "LISTING_SCHEMA",
    "SKIPPED_KINDS",
    "FileInfo",
    "PathPolicy",
    "S3Options",
    "StorageUnavailableError",
    "absolute",
    "delete",
    "exists",
    "file_info",
    "glob_files",
    "glob_tables",
    "is_folder",
    "is_remote",
    "is_skipped_name",
    "is_within",
    "join",
    "list_files",
    "list_tables",
    "name_of",
    "open_seekable",
    "put_atomic",
    "put_if_absent",
    "read_bytes",
    "read_range",
    "remove_empty_folder",
    "remove_tree",
    "require_prefix",
    "size_of",
    "skipped_name_kind",
    "use_s3",
    "using_s3",
    "version_of",
]
