"""What a worker leaves behind of a shard that is packed: its parts, and the rows that failed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from eagleray.core.errors import JobFailedError
from eagleray.io import storage
from eagleray.io.arrow_files import encode_table
from eagleray.sharded.layout import OutputLayout

__all__ = ["PackedPart", "PackedShard", "encode_receipt", "read_receipt"]

_KEY = b"eagleray"


class PackedPart(BaseModel):
    """One of the large files.

    Attributes:
        name: Inside the output.
        first_row: Manifest row of its first image.
        num_rows: Images in it.
        num_bytes: Of the file.
        sha256: Of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    first_row: int
    num_rows: int
    num_bytes: int
    sha256: str


class PackedShard(BaseModel):
    """A shard that is done.

    Attributes:
        shard: Its number.
        parts: That hold its images, in order; none where all failed, more than one where they
            turned out larger than a part may be.
        num_failed: Inputs that are in no part.
        image_bytes: Of all its images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    parts: tuple[PackedPart, ...]
    num_failed: int
    image_bytes: int

    @property
    def num_packed(self) -> int:
        """Images in its parts."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Inputs."""
        return self.num_packed + self.num_failed


def encode_receipt(packed: PackedShard, failures: pa.Table) -> bytes:
    """Encode a receipt: the rows that failed, with all else in the metadata."""
    metadata = {_KEY: packed.model_dump_json().encode()}
    return encode_table(failures.replace_schema_metadata(metadata), "parquet")


def read_receipt(layout: OutputLayout, shard: int) -> tuple[PackedShard, pa.Table]:
    """Return what is known of a finished shard, and its rows that failed.

    Raises:
        FileNotFoundError: It is not finished.
        JobFailedError: The receipt is damaged; it is removed, so that the shard is made anew.
    """
    location = layout.shard(shard)
    content = storage.read_bytes(location)
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        packed = PackedShard.model_validate_json(file.schema_arrow.metadata[_KEY])
        return packed, file.read().replace_schema_metadata()
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        storage.delete(location)
        raise JobFailedError(
            f"{location} was damaged in storage and is removed; run the same command again to "
            "make it anew."
        ) from error
