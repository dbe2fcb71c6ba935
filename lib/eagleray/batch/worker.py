"""What runs on a worker: a shard's number in, its result file written, one line of summary out.

    ShardWorker      reads, decodes, predicts and writes, a shard on each of a few cores, where
                     there is no GPU
    DecodeWorker     reads and decodes, on every core beside GPUs
    PredictWorker    predicts and writes what a DecodeWorker hands over: one for each GPU

A shard that was begun before killed a worker, or lost it. It is decoded in a sandbox, image by
image, so that the one that kills is found and named.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.batch.results import ResultWriter, result_schema
from eagleray.core.errors import Reason
from eagleray.core.system import set_niceness
from eagleray.core.types import CompileMode, Precision
from eagleray.imaging import DecodedImage
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.imaging.watchdog import Watchdog, worker_memory_budget
from eagleray.inference.prefetcher import Budget, DecodedItem, Prefetcher, decode_sandboxed
from eagleray.io import storage
from eagleray.io.arrow_files import encode_table
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.io.http import UrlPolicy
from eagleray.io.tables import texts_of
from eagleray.models.attributes import Attribute, Features, encode_columns
from eagleray.registry.references import LoadedModel
from eagleray.sharded.attempts import ShardJournal
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import USER_PREFIX, ManifestReader
from eagleray.tasks.outcome import Outcome

__all__ = [
    "SHARD_COLUMN",
    "DecodeWorker",
    "JobContext",
    "PredictWorker",
    "ShardSummary",
    "ShardWorker",
    "WorkerOptions",
    "decode_shard",
    "encode_shard",
]

SHARD_COLUMN = "shard"

_SUMMARY_KEY = b"eagleray"
_READERS_OF_FILES = 4  # a file is there at once, and threads that take turns cost some of a core
_READERS_OF_REMOTE = 16  # waiting for storage costs a thread and no core
_LARGE_IMAGE = 8_000_000  # pixels; decoding more takes as long as some forward passes
_BYTES_PER_PIXEL = 16  # what decoding holds at its peak: 16-bit RGBA and a copy in 8 bits
_SHARE_FOR_PIXELS = 4  # one part in so many of a worker's memory
_SHARE_FOR_BYTES = 8


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How every worker of a job runs.

    Attributes:
        top_k: Labels listed for each image.
        device: `cpu` or `cuda`.
        precision: Of the forward pass.
        compile_mode: Of the forward pass.
        num_threads: For decoding a shard, and inside a forward pass on a CPU.
        shards_at_a_time: That a process works on, each with threads of its own.
        processes_per_node: That share a node's memory.
        seconds_per_image: Time limit of one decode.
        expected_images: That one of the job's workers will see.
        cache_folder: Of compiled networks.
        niceness: Of the program that started the job: its workers give way as it does.
    """

    top_k: int
    device: str
    precision: Precision
    compile_mode: CompileMode
    num_threads: int
    shards_at_a_time: int
    processes_per_node: int
    seconds_per_image: float
    expected_images: int
    cache_folder: str
    niceness: int = 0


@dataclass(frozen=True, slots=True)
class JobContext:
    """All that a worker needs to know of its job.

    Attributes:
        model: Verified.
        output: Location of the output.
        manifest_folder: Of the inputs.
        num_shards: In the manifest.
        options: How to run.
        urls: Which addresses may be fetched.
        s3: How S3 is reached.
        path_policy: Which locations may be read, whatever the manifest says.
    """

    model: LoadedModel
    output: str
    manifest_folder: str
    num_shards: int
    options: WorkerOptions
    urls: UrlPolicy
    s3: storage.S3Options
    path_policy: storage.PathPolicy = field(default_factory=storage.PathPolicy)


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the driver learns of a finished shard; the results themselves are in its file.

    Attributes:
        shard: Its number.
        num_ok: Rows with a prediction.
        num_failed: Rows with a reason.
        started: Seconds since the epoch.
        finished: Seconds since the epoch, when its result was put.
        engine: What ran the network and why, for a person.
    """

    shard: int
    num_ok: int
    num_failed: int
    started: float
    finished: float
    engine: str = ""

    @property
    def num_rows(self) -> int:
        """Rows of the shard."""
        return self.num_ok + self.num_failed

    def as_block(self) -> pa.Table:
        """As a block of Ray Data."""
        return pa.table({name: [getattr(self, name)] for name in self.__slots__})


def encode_shard(rows: pa.Table, summary: ShardSummary) -> bytes:
    """Encode a shard's result: its rows, with the summary in the metadata."""
    values = {name: getattr(summary, name) for name in ShardSummary.__slots__}
    metadata = {_SUMMARY_KEY: json.dumps(values).encode()}
    return encode_table(rows.replace_schema_metadata(metadata), "parquet")


def decode_shard(content: bytes) -> tuple[pa.Table, ShardSummary]:
    """Return a shard's rows and its summary.

    Raises:
        ValueError: The content is damaged.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        summary = ShardSummary(**json.loads(file.schema_arrow.metadata[_SUMMARY_KEY]))
        return file.read().replace_schema_metadata(), summary
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(str(error)) from error


class ShardWorker:
    """A Ray Data actor: holds one predictor, works on shards in as many threads as call it.

    Args:
        context: Object-store reference of the `JobContext`.
        journal: Of the job.
    """

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        import ray

        loaded: JobContext = ray.get(context)
        storage.use_s3(loaded.s3)
        set_niceness(loaded.options.niceness)
        self._journal = journal
        self._answering = _Answering(loaded)
        self._decoding = _Decoding(loaded)  # knows what memory the model has left it

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on the shard that a block names."""
        started = time.time()
        number = block.column(SHARD_COLUMN)[0].as_py()
        begun = self._journal.begin(number)
        done = self._answering.finished_before(number) if begun else None
        if done is None:
            rows = self._decoding.rows(number)
            fed = self._decoding.feed(rows, carefully=begun > 0)
            done = self._answering.answer(number, rows, fed, started)
        return done.as_block()


class DecodeWorker:
    """A Ray Data actor on CPU cores that feeds the actors on GPUs."""

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        import ray

        loaded: JobContext = ray.get(context)
        self._journal = journal
        self._decoding = _Decoding(loaded)
        self._shape = loaded.model.package.contract.shape

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decode the shard that a block names.

        Returns:
            A row for each image, in the order of the shard: `pixels` as bytes of the contract's
            shape, or `reason` and `message`.
        """
        started = time.time()
        number = block.column(SHARD_COLUMN)[0].as_py()
        begun = self._journal.begin(number)
        rows = self._decoding.rows(number)
        fed = sorted(self._decoding.feed(rows, carefully=begun > 0), key=lambda one: one.index)
        records = [_as_record(one) for one in fed]
        fields: dict[str, pa.DataType] = {
            "pixels": pa.binary(int(np.prod(self._shape))),
            "width": pa.int32(),
            "height": pa.int32(),
            "reason": pa.string(),
            "message": pa.string(),
            "milliseconds": pa.float64(),
        }
        columns = {
            name: pa.array([record.get(name) for record in records], kind)
            for name, kind in fields.items()
        }
        constants = {
            SHARD_COLUMN: pa.array([number] * len(records), pa.int64()),
            "started": pa.array([started] * len(records), pa.float64()),
        }
        return pa.table({**constants, **columns})


class PredictWorker:
    """A Ray Data actor on a GPU: predicts decoded shards and writes their results."""

    def __init__(self, context: Any) -> None:
        import ray

        loaded: JobContext = ray.get(context)
        _settle(loaded)
        self._answering = _Answering(loaded)
        self._manifest = ManifestReader(loaded.manifest_folder, loaded.num_shards)
        self._shape = loaded.model.package.contract.shape

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on one decoded shard."""
        number = block.column(SHARD_COLUMN)[0].as_py()
        fed = (_from_record(index, row, self._shape) for index, row in enumerate(_records(block)))
        rows = self._manifest.shard(number)
        started = block.column("started")[0].as_py()
        return self._answering.answer(number, rows, fed, started).as_block()


def _as_record(fed: DecodedItem) -> dict[str, Any]:
    image = fed.image
    if isinstance(image, DecodedImage):
        answer: dict[str, Any] = {
            "pixels": image.pixels.tobytes(),
            "width": image.width,
            "height": image.height,
        }
    else:
        assert image.failure is not None
        answer = {"reason": image.failure.reason.value, "message": image.failure.message}
    return {**answer, "milliseconds": fed.milliseconds}


def _records(block: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in block.to_batches(max_chunksize=64):  # pixels become Python objects few at a time
        yield from batch.to_pylist()


def _from_record(index: int, record: dict[str, Any], shape: tuple[int, ...]) -> DecodedItem:
    image: DecodedImage | Outcome
    if record["pixels"] is None:
        image = Outcome.failed(Reason(record["reason"]), record["message"])
    else:
        pixels = np.frombuffer(record["pixels"], np.uint8).reshape(shape)
        image = DecodedImage(pixels, record["width"], record["height"])
    return DecodedItem(index, image, record["milliseconds"])


def _settle(context: JobContext) -> None:
    """Make a worker's process ready: its threads are the ones it was given."""
    import cv2

    cv2.setNumThreads(1)
    storage.use_s3(context.s3)
    set_niceness(context.options.niceness)


class _Decoding:
    """The half of the work that needs no network; shards side by side share its budgets."""

    def __init__(self, context: JobContext) -> None:
        _settle(context)
        options = context.options
        contract = context.model.package.contract
        memory = worker_memory_budget(options.processes_per_node)
        self._manifest = ManifestReader(context.manifest_folder, context.num_shards)
        self._reader = ImageReader(contract.max_bytes, context.urls, context.path_policy)
        self._watchdog = Watchdog(options.seconds_per_image, memory)
        self._new_sandbox = functools.partial(
            DecodeSandbox,
            contract,
            seconds=options.seconds_per_image,
            memory_bytes=memory // _SHARE_FOR_PIXELS // options.shards_at_a_time,
        )
        prefetcher = functools.partial(
            Prefetcher,
            reader=self._reader,
            contract=contract,
            apart=_LARGE_IMAGE,
            decoders=Semaphore(options.num_threads * options.shards_at_a_time),
            pixels=Budget(memory // _SHARE_FOR_PIXELS // _BYTES_PER_PIXEL),
            num_bytes=Budget(memory // _SHARE_FOR_BYTES),
            watch=self._watchdog.decoding,
        )

        def with_readers(count: int) -> Prefetcher:
            return prefetcher(
                pool=ThreadPoolExecutor(options.shards_at_a_time * (count + options.num_threads)),
                ahead=2 * count + 4 * options.num_threads,
            )

        self._feed_files = with_readers(_READERS_OF_FILES).feed
        self._feed_remote = with_readers(_READERS_OF_REMOTE).feed

    def rows(self, number: int) -> pa.Table:
        return self._manifest.shard(number)

    def feed(self, rows: pa.Table, *, carefully: bool) -> Iterator[DecodedItem]:
        sources = _sources(rows)
        if not carefully:
            remote = any(storage.is_remote(source.uri) for source in sources)
            yield from (self._feed_remote if remote else self._feed_files)(sources)
            return
        with contextlib.closing(self._new_sandbox()) as sandbox:
            yield from decode_sandboxed(sources, self._reader, sandbox)


def _sources(rows: pa.Table) -> list[ImageSource]:
    names = ("uri", "size", "packing", "container", "offset")
    columns = [rows.column(name).to_pylist() for name in names]
    return [
        ImageSource(uri=uri, size=size, packing=packing, container=container, offset=offset)
        for uri, size, packing, container, offset in zip(*columns, strict=True)
    ]


class _Answering:
    """The half of the work that needs the network: predict, and put the shard's result."""

    def __init__(self, context: JobContext) -> None:
        from eagleray.inference.predictor import (
            Predictor,
        )  # the driver imports this module without PyTorch

        options = context.options
        self._layout = OutputLayout(context.output)
        self._predictor = Predictor(
            context.model.package,
            device=options.device,
            precision=options.precision,
            compile_mode=options.compile_mode,
            num_threads=options.num_threads if options.device == "cpu" else None,
            expected_images=options.expected_images,
            cache_folder=Path(options.cache_folder),
        )
        self._predictor.require_healthy()
        manifest = ManifestReader(context.manifest_folder, context.num_shards)
        schema = result_schema(context.model, manifest.schema)
        self._writer = ResultWriter(context.model, schema, options.top_k)

    def finished_before(self, number: int) -> ShardSummary | None:
        """Return the summary of a shard whose result was put by a worker that died after it."""
        try:
            return decode_shard(storage.read_bytes(self._layout.shard(number)))[1]
        except (FileNotFoundError, ValueError):  # none, or a damaged one, which is made anew
            return None

    def answer(
        self, number: int, rows: pa.Table, fed: Iterator[DecodedItem], started: float
    ) -> ShardSummary:
        outcomes: list[Outcome | None] = [None] * rows.num_rows
        milliseconds = [0.0] * rows.num_rows
        attributes = _attributes_of(rows, self._predictor.package.attributes)
        for group in _groups(fed, self._predictor.plan.batch_size):
            before = time.perf_counter()
            answers = self._predictor.predict_decoded(
                [one.image for one in group],
                None if attributes is None else attributes[[one.index for one in group]],
            )
            share = 1000 * (time.perf_counter() - before) / len(group)
            for one, outcome in zip(group, answers, strict=True):
                outcomes[one.index] = outcome
                milliseconds[one.index] = one.milliseconds + share
        complete = [outcome for outcome in outcomes if outcome is not None]
        assert len(complete) == rows.num_rows
        table = self._writer.table(rows, complete, milliseconds)
        return self._put(number, table, complete, started)

    def _put(
        self, number: int, table: pa.Table, outcomes: Sequence[Outcome], started: float
    ) -> ShardSummary:
        num_ok = sum(outcome.ok for outcome in outcomes)
        summary = ShardSummary(
            number,
            num_ok,
            len(outcomes) - num_ok,
            started,
            time.time(),
            engine=self._predictor.engine,
        )
        storage.put_atomic(self._layout.shard(number), encode_shard(table, summary))
        return summary


def _attributes_of(rows: pa.Table, attributes: Sequence[Attribute]) -> Features | None:
    """Return what the network sees of the user's own columns; None where it takes none."""
    if not attributes:
        return None
    columns = {one.name: texts_of(rows.column(USER_PREFIX + one.name)) for one in attributes}
    return encode_columns(attributes, columns)


def _groups(fed: Iterator[DecodedItem], size: int) -> Iterator[list[DecodedItem]]:
    """Gather whole forward passes: images that failed share a group and fill no place in it."""
    group: list[DecodedItem] = []
    num_decoded = 0
    for one in fed:
        group.append(one)
        num_decoded += isinstance(one.image, DecodedImage)
        if num_decoded == size:
            yield group
            group, num_decoded = [], 0
    if group:
        yield group
