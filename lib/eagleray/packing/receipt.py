"""The receipt of a packed shard: the files that hold its images, and the rows that failed."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from eagleray.sharded.commit import OutputFile
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.shard_results import encode_result, read_result

__all__ = ["PackedShard", "encode_receipt", "read_receipt"]


class PackedShard(BaseModel):
    """A shard that is packed.

    Attributes:
        shard: Number of the shard.
        files: Files that hold its images, in order: none if all failed, more than one if the
            images are larger than their listing said.
        num_failed: Number of inputs that are in no file.
        image_bytes: Number of bytes of all its images.
        reasons: Number of inputs that failed for each reason code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    files: tuple[OutputFile, ...]
    num_failed: int
    image_bytes: int
    reasons: dict[str, int] = {}

    @property
    def num_packed(self) -> int:
        """Number of images in its files."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_rows(self) -> int:
        """Number of inputs."""
        return self.num_packed + self.num_failed

    @property
    def repeated(self) -> None:
        """Unknown: Ray itself repeats the task of a shard that loses its worker."""


def encode_receipt(packed: PackedShard, failures: pa.Table) -> bytes:
    """Encode a receipt: the rows that failed, with all else in the metadata."""
    return encode_result(failures, packed.model_dump_json().encode())


def read_receipt(layout: OutputLayout, shard: int) -> tuple[PackedShard, pa.Table]:
    """Return the receipt of a shard, and its rows that failed.

    Raises:
        FileNotFoundError: If the shard is not packed yet.
        JobFailedError: If the receipt is damaged; it is removed, so that it is made anew.
    """
    failures, packed = read_result(layout, shard, PackedShard.model_validate_json)
    return packed, failures
