"""The locations of everything in the output of a job.

    OUTPUT/
      part-00000.parquet …      results in the order of the manifest
      _manifest.json            the commit: its files with rows and digests; one writer wins
      _SUCCESS                  put last, for readers that look for it
      _eagleray/                plan, inputs, shard results, progress, page; readers skip it

Names that begin with `_` are skipped by Arrow, Spark and Ray.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Annotated

from pydantic import StringConstraints

from eagleray.io import storage

__all__ = ["FileName", "OutputLayout"]

FileName = Annotated[str, StringConstraints(pattern=r"^_?[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A file name inside an output, which cannot lead out of it."""


class OutputLayout:
    """The locations of an output.

    Args:
        location: The folder or URI, as the user named it.
    """

    def __init__(self, location: str) -> None:
        self.location = storage.absolute(location)
        self.commit = storage.join(self.location, "_manifest.json")
        self.success = storage.join(self.location, "_SUCCESS")
        self.private = storage.join(self.location, "_eagleray")
        self.plan = storage.join(self.private, "plan.json")
        self.shards = storage.join(self.private, "shards")
        self.progress = storage.join(self.private, "progress.json")
        self.cancel = storage.join(self.private, "cancel")
        self.pause = storage.join(self.private, "pause")
        self.timeline = storage.join(self.private, "timeline.parquet")
        self.report = storage.join(self.private, "report.html")

    def file(self, number: int, output_format: str) -> str:
        """The location of a file of the result."""
        return storage.join(self.location, f"part-{number:05d}.{output_format}")

    def manifest(self, name: str) -> str:
        """The folder of a manifest; the plan names the one that counts."""
        return storage.join(self.private, name)

    def shard(self, number: int) -> str:
        """The location of a shard's result, which depends on nothing but the shard."""
        return storage.join(self.shards, f"shard-{number:08d}.parquet")

    def abandoned_folders(self, manifest: str) -> list[str]:
        """Locations of what other runs left: samples, and manifests other than this one."""
        below = (file.uri.removeprefix(f"{self.private}/") for file in _files_under(self.private))
        folders = {name.split("/", 1)[0] for name in below if "/" in name}
        return [
            storage.join(self.private, name)
            for name in sorted(folders)
            if name.startswith(("manifest-", "quote-")) and name != manifest
        ]

    def unfinished_files(self) -> list[str]:
        """Locations of probes and incomplete result files, most of them of killed runs."""
        starts = (storage.join(self.location, ".part-"), storage.join(self.private, "probe-"))
        return [file.uri for file in _files_under(self.location) if file.uri.startswith(starts)]

    def remove_folder(self, folder: str) -> None:
        """Remove a private folder, even if another run removes or fills it at the same time."""
        try:
            if storage.is_folder(folder):
                storage.remove_tree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise

    def holds_other_files(self) -> bool:
        """Whether the output holds a file outside the private folder."""
        files = storage.list_files(self.location) if storage.is_folder(self.location) else ()
        return any(not file.uri.startswith(f"{self.private}/") for file in files)

    def finished_shards(self) -> Iterator[int]:
        """Yield the numbers of the shards that have a result, in any order."""
        for file in _files_under(self.shards):
            name = storage.name_of(file.uri)
            if name.startswith("shard-") and name.endswith(".parquet"):
                yield int(name.removeprefix("shard-").removesuffix(".parquet"))


def _files_under(folder: str) -> Iterator[storage.FileInfo]:
    if storage.is_folder(folder):
        yield from storage.list_files(folder)
