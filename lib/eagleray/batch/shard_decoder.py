"""Reads and decodes the images of a shard, the half of the work that needs no network."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

import pyarrow as pa

from eagleray.batch.context import JobContext
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.imaging.watchdog import Watchdog, worker_memory_budget
from eagleray.inference.prefetcher import Budget, DecodedItem, Prefetcher, decode_sandboxed
from eagleray.io import storage
from eagleray.io.fetch import ImageReader
from eagleray.sharded.columns import image_sources

__all__ = ["ShardDecoder"]

_FILE_READERS = 4  # a file is read at once, and more threads cost the core that decodes
_REMOTE_READERS = 16  # waiting for storage costs a thread and no core
_LARGE_IMAGE = 8_000_000  # pixels; decoding more takes as long as some forward passes
_BYTES_PER_PIXEL = 16  # peak memory of decoding: 16-bit RGBA and a copy in 8 bits
_PIXELS_DIVISOR = 4  # the budget of pixels is this fraction of a worker's memory
_BYTES_DIVISOR = 8


class ShardDecoder:
    """Decodes shards; those that a process works on at the same time share its budgets.

    Make it after the model is loaded, as its budget is the memory that is left.
    """

    def __init__(self, context: JobContext) -> None:
        options = context.options
        contract = context.model.package.contract
        memory = worker_memory_budget(options.processes_per_node)
        self._manifest, self._tiling = context.manifest, options.tiling
        self._reader = ImageReader(contract.max_bytes, context.urls, context.path_policy)
        self._watchdog = Watchdog(options.seconds_per_image, memory)
        self._new_sandbox = functools.partial(
            DecodeSandbox,
            contract,
            seconds=options.seconds_per_image,
            memory_bytes=memory // _PIXELS_DIVISOR // options.shards_at_a_time,
            whole=options.tiling is not None,
        )
        prefetcher = functools.partial(
            Prefetcher,
            reader=self._reader,
            contract=contract,
            max_inline_pixels=_LARGE_IMAGE,
            decoders=Semaphore(options.num_threads * options.shards_at_a_time),
            pixels=Budget(memory // _PIXELS_DIVISOR // _BYTES_PER_PIXEL),
            num_bytes=Budget(memory // _BYTES_DIVISOR),
            watch=self._watchdog.decoding,
            tiling=options.tiling,
        )

        def with_readers(count: int) -> Prefetcher:
            return prefetcher(
                pool=ThreadPoolExecutor(options.shards_at_a_time * (count + options.num_threads)),
                ahead=2 * count + 4 * options.num_threads,
            )

        self._prefetch_files = with_readers(_FILE_READERS).prefetch
        self._prefetch_remote = with_readers(_REMOTE_READERS).prefetch

    def rows(self, shard: int) -> pa.Table:
        """Return the manifest rows of a shard."""
        return self._manifest.shard(shard)

    def decode(self, rows: pa.Table, *, sandboxed: bool) -> Iterator[DecodedItem]:
        """Yield the image of every row, as images become ready.

        Args:
            rows: Rows of the manifest.
            sandboxed: Whether to decode in a child process, image by image.
        """
        sources = image_sources(rows)
        if not sandboxed:
            remote = any(storage.is_remote(source.uri) for source in sources)
            yield from (self._prefetch_remote if remote else self._prefetch_files)(sources)
            return
        with contextlib.closing(self._new_sandbox()) as sandbox:
            yield from decode_sandboxed(sources, self._reader, sandbox, self._tiling)
