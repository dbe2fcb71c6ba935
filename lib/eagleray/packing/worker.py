"""Packs one shard on a worker: puts its files and its receipt, and returns a summary."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from eagleray.core.errors import BadImageError, JobFailedError, Reason
from eagleray.io import storage
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.io.http import UrlPolicy
from eagleray.io.read_ahead import read_ahead
from eagleray.packing.files import (
    PackFormat,
    PackWriter,
    pack_file_name,
    pick_rows,
    with_user_columns,
)
from eagleray.packing.receipt import PackedShard, encode_receipt, read_receipt
from eagleray.sharded.columns import image_sources
from eagleray.sharded.commit import OutputFile
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader

__all__ = ["PackContext", "pack_shard"]

_NUM_READERS = 16  # waiting for storage costs a thread and no core
_IMAGES_AHEAD = 2 * _NUM_READERS
_BYTES_AHEAD = 64 * 2**20
_UNKNOWN_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True)
class PackContext:
    """All that a worker needs to know of its job.

    Attributes:
        output: Location of the output.
        manifest_folder: Folder of the manifest.
        num_shards: Number of shards in the manifest.
        file_format: Format of the files.
        file_bytes: Maximum number of bytes of the images in a file, unless it has only one.
        max_bytes: Maximum number of bytes of an image.
        urls: Addresses that images may be fetched from.
        s3: Options that reach S3.
        path_policy: Locations that may be read, whatever the manifest says.
    """

    output: str
    manifest_folder: str
    num_shards: int
    file_format: PackFormat
    file_bytes: int
    max_bytes: int
    urls: UrlPolicy
    s3: storage.S3Options
    path_policy: storage.PathPolicy = field(default_factory=storage.PathPolicy)


class _OtherContentError(Exception):
    """There is a file of the name already, with other bytes than its inputs have now."""


def pack_shard(context: PackContext, shard: int) -> PackedShard:
    """Read a shard's images, put them into files, and put its receipt.

    A shard that has a receipt is not packed again, so two workers may get the same one.

    Raises:
        JobFailedError: If there is a file of the same name with other content.
        OSError: If the manifest cannot be read, or a file cannot be written.
    """
    storage.use_s3(context.s3)
    layout = OutputLayout(context.output)
    try:
        return read_receipt(layout, shard)[0]
    except FileNotFoundError:
        pass
    packer = _ShardPacker(context, layout, shard)
    try:
        packed, failures = packer.pack()
    except _OtherContentError as found:
        try:
            return read_receipt(layout, shard)[0]  # of another run that put the file
        except FileNotFoundError:
            raise JobFailedError(
                f"{found} was left there by a run that was stopped, and its inputs have changed "
                "since. If no other run is at work on this output, remove that file and run the "
                "same command again."
            ) from None
    if storage.put_if_absent(layout.shard(shard), encode_receipt(packed, failures)):
        return packed
    standing, _ = read_receipt(layout, shard)
    for file in packer.new_files:
        if file not in standing.files:
            storage.delete(storage.join(layout.location, file.name))
    return standing


class _ShardPacker:
    """Fills one file after the other with the images of a shard.

    Attributes:
        new_files: Files that were not there before.
    """

    def __init__(self, context: PackContext, layout: OutputLayout, shard: int) -> None:
        self._context, self._layout, self._shard = context, layout, shard
        self._rows = _manifest(context.manifest_folder, context.num_shards).shard(shard)
        self._files: list[OutputFile] = []
        self.new_files: list[OutputFile] = []

    def pack(self) -> tuple[PackedShard, pa.Table]:
        """Return what was packed, and the rows that failed."""
        failed: list[tuple[int, BadImageError]] = []
        image_bytes = first = 0
        writer = self._new_writer()
        context = self._context
        reader = _reader(context.max_bytes, context.urls, context.path_policy)
        for index, image in enumerate(_read_in_order(reader, image_sources(self._rows))):
            fault = _fault(image, self._context.max_bytes)
            if fault is not None:
                failed.append((index, fault))
                continue
            assert isinstance(image, bytes)
            too_much = writer.num_image_bytes + len(image) > self._context.file_bytes
            if writer.num_rows and too_much:
                self._put(writer, first)
                writer = self._new_writer()
            if writer.num_rows == 0:
                first = index
            writer.add(index, image)
            image_bytes += len(image)
        if writer.num_rows:
            self._put(writer, first)
        packed = PackedShard(
            shard=self._shard,
            files=tuple(self._files),
            num_failed=len(failed),
            image_bytes=image_bytes,
            reasons=Counter(fault.reason.value for _, fault in failed),
        )
        return packed, _failures(self._rows, failed)

    def _new_writer(self) -> PackWriter:
        return PackWriter(self._rows, self._context.file_format)

    def _put(self, writer: PackWriter, first: int) -> None:
        content = writer.close()
        name = pack_file_name(self._shard, len(self._files), self._context.file_format)
        file = OutputFile(
            name=name,
            first_row=self._rows.column("row")[first].as_py(),
            num_rows=writer.num_rows,
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        location = storage.join(self._layout.location, name)
        if storage.put_if_absent(location, content):
            self.new_files.append(file)
        elif storage.read_bytes(location) != content:
            raise _OtherContentError(location)
        self._files.append(file)


def _fault(image: bytes | BadImageError, max_bytes: int) -> BadImageError | None:
    if isinstance(image, BadImageError):
        return image
    if len(image) > max_bytes:
        return BadImageError(
            Reason.TOO_MANY_BYTES, f"the file has more bytes than the limit, {max_bytes:,}"
        )
    return None


def _failures(rows: pa.Table, failed: Sequence[tuple[int, BadImageError]]) -> pa.Table:
    about = with_user_columns(rows, {"uri", "reason", "message"})
    about = pick_rows(about, [index for index, _ in failed])
    reasons = pa.array([fault.reason.value for _, fault in failed], pa.string())
    messages = pa.array([fault.message for _, fault in failed], pa.string())
    return about.add_column(1, "reason", reasons).add_column(2, "message", messages)


# --- read -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _manifest(folder: str, num_shards: int) -> ManifestReader:
    return ManifestReader(folder, num_shards)


@functools.lru_cache(maxsize=1)
def _reader(max_bytes: int, urls: UrlPolicy, paths: storage.PathPolicy) -> ImageReader:
    return ImageReader(max_bytes, urls, paths)


def _read_in_order(
    reader: ImageReader, sources: Sequence[ImageSource]
) -> Iterator[bytes | BadImageError]:
    """Yield every image in order, read ahead as far as their listed sizes allow."""

    def read(source: ImageSource) -> bytes | BadImageError:
        try:
            return reader.read(source)
        except BadImageError as error:
            return error

    return read_ahead(
        read,
        sources,
        threads=_NUM_READERS,
        max_ahead=_IMAGES_AHEAD,
        max_bytes=_BYTES_AHEAD,
        num_bytes=lambda source: _UNKNOWN_BYTES if source.size is None else source.size,
    )
