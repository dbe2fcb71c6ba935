"""The Ray Data actors of a prediction job: numbers of shards in, one line of summary for each out.

    ShardWorker      reads, decodes, predicts and writes, a shard on each of a few cores, where
                     there is no GPU
    DecodeWorker     reads and decodes, on every core beside GPUs
    PredictWorker    predicts and writes what a DecodeWorker decoded: one for each GPU

A shard that was begun before killed a worker, or lost it. It is decoded in a sandbox, image by
image, so that the image at fault is found and named. A shard that is handed back, because the job
yields its workers or the worker's node is drained, comes back as its number alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from eagleray.batch.context import JobContext
from eagleray.batch.shard_decoder import ShardDecoder
from eagleray.batch.shard_predictor import ShardPredictor
from eagleray.batch.shard_summary import ShardSummary
from eagleray.core.errors import Reason
from eagleray.imaging import DecodedImage
from eagleray.inference.prefetcher import DecodedItem
from eagleray.sharded.attempts import ShardJournal
from eagleray.tasks.outcome import Outcome

__all__ = ["SHARD_COLUMN", "DecodeWorker", "PredictWorker", "ShardWorker"]

SHARD_COLUMN = "shard"


class ShardWorker:
    """A Ray Data actor: holds one predictor, works on shards in as many threads as call it.

    Args:
        context: Object-store reference of the `JobContext`.
        journal: Counts how often shards are begun.
    """

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        import ray

        loaded: JobContext = ray.get(context)
        loaded.prepare_process()
        self._journal = journal
        self._predictor = ShardPredictor(loaded)
        self._decoder = ShardDecoder(loaded)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on the shards that a block names, in order, and hand back those that are left.

        Returns:
            A row for each shard: its summary, or its number and otherwise nulls if it is handed
            back.
        """
        done: list[pa.Table] = []
        for shard in block.column(SHARD_COLUMN).to_pylist():
            if self._journal.hands_back:
                self._journal.hand_back_slowly()
                break
            done.append(self.work(shard).as_block())
        return pa.concat_tables([*done, block.slice(len(done))], promote_options="default")

    def work(self, shard: int) -> ShardSummary:
        """Predict a shard and put its result, unless a worker that was lost has done so."""
        started = time.time()
        begun = self._journal.begin(shard)
        summary = self._predictor.find_result(shard) if begun else None
        if summary is None:
            rows = self._decoder.rows(shard)
            decoded = self._decoder.decode(rows, sandboxed=begun > 0)
            summary = self._predictor.predict(shard, rows, decoded, started, repeated=begun > 0)
        return summary


class DecodeWorker:
    """A Ray Data actor on CPU cores that decodes for the actors on GPUs."""

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        import ray

        loaded: JobContext = ray.get(context)
        loaded.prepare_process()
        self._journal = journal
        self._decoder = ShardDecoder(loaded)
        self._shape = loaded.model.package.contract.shape

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decode the shard that a block names.

        Returns:
            A row for each image, in the order of the shard: `pixels` as bytes of the contract's
            shape, or `reason` and `message`; or the block itself, which hands the shard back.
        """
        if self._journal.hands_back:
            self._journal.hand_back_slowly()
            return block
        started = time.time()
        shard = block.column(SHARD_COLUMN)[0].as_py()
        begun = self._journal.begin(shard)
        decoded = self._decoder.decode(self._decoder.rows(shard), sandboxed=begun > 0)
        records = [_as_record(item) for item in sorted(decoded, key=lambda item: item.index)]
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
            SHARD_COLUMN: pa.array([shard] * len(records), pa.int64()),
            "started": pa.array([started] * len(records), pa.float64()),
            "repeated": pa.array([begun > 0] * len(records), pa.bool_()),
        }
        return pa.table({**constants, **columns})


class PredictWorker:
    """A Ray Data actor on a GPU: predicts decoded shards and writes their results."""

    def __init__(self, context: Any) -> None:
        import ray

        loaded: JobContext = ray.get(context)
        loaded.prepare_process()
        self._predictor = ShardPredictor(loaded)
        self._manifest = loaded.manifest
        self._shape = loaded.model.package.contract.shape

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on one decoded shard, unless it was handed back."""
        if "pixels" not in block.column_names:
            return block
        shard = block.column(SHARD_COLUMN)[0].as_py()
        records = enumerate(_records(block))
        decoded = (_from_record(index, record, self._shape) for index, record in records)
        rows = self._manifest.shard(shard)
        started = block.column("started")[0].as_py()
        repeated = block.column("repeated")[0].as_py()
        summary = self._predictor.predict(shard, rows, decoded, started, repeated=repeated)
        return summary.as_block()


def _as_record(item: DecodedItem) -> dict[str, Any]:
    image = item.image
    if isinstance(image, DecodedImage):
        record: dict[str, Any] = {
            "pixels": image.pixels.tobytes(),
            "width": image.width,
            "height": image.height,
        }
    else:
        assert isinstance(image, Outcome)  # images in tiles are decoded where they are predicted
        assert image.failure is not None
        record = {"reason": image.failure.reason.value, "message": image.failure.message}
    return {**record, "milliseconds": item.milliseconds}


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
