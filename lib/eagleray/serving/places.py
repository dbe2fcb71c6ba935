"""Storage locations that a service may read images from: what its operator names, and below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eagleray import storage

__all__ = ["is_allowed"]


def is_allowed(uri: str, prefixes: Sequence[str]) -> bool:
    """Whether a location is one of the prefixes, or below one.

    A prefix ends where a name ends: `s3://bucket/images` does not mean `s3://bucket/images-secret`.
    Links of a local file system count as what they lead to.
    """
    if "::" in uri or ".." in uri.split("/"):  # of several storages, or upwards
        return False
    if storage.is_remote(uri):
        remote = (prefix.rstrip("/") for prefix in prefixes if storage.is_remote(prefix))
        return any(uri == prefix or uri.startswith(f"{prefix}/") for prefix in remote)
    try:
        path = Path(storage.absolute(uri)).resolve()
        local = (prefix for prefix in prefixes if not storage.is_remote(prefix))
        return any(
            path.is_relative_to(Path(storage.absolute(prefix)).resolve()) for prefix in local
        )
    except (OSError, ValueError, RuntimeError):  # no name of a file, or links in a circle
        return False
