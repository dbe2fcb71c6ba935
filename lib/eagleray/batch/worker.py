"""What runs on a worker: one shard in, its result file written, one line of summary out."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from eagleray import storage
from eagleray.batch.results import encode_table, result_table
from eagleray.batch.shards import SHARD_COLUMN, shard_file
from eagleray.errors import BadImageError
from eagleray.execution import CompileMode, Precision
from eagleray.fetch import fetch_image
from eagleray.imaging import DecodedImage
from eagleray.models.sources import LoadedModel
from eagleray.outcome import Outcome
from eagleray.predictor import Predictor

__all__ = ["ShardSummary", "ShardWorker", "WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How every worker of a job runs.

    Attributes:
        shard_folder: Where shard results are written.
        top_k: Labels listed for each image.
        device: `cpu` or `cuda`.
        precision: Of the forward pass.
        compile_mode: Of the forward pass.
        num_threads: For decoding, and inside a forward pass on a CPU.
        expected_images: Of the whole job.
        cache_folder: Of compiled networks.
    """

    shard_folder: str
    top_k: int
    device: str
    precision: Precision
    compile_mode: CompileMode
    num_threads: int
    expected_images: int
    cache_folder: str


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the driver learns of a finished shard; the results themselves are in its file.

    Attributes:
        shard: Its number.
        num_ok: Rows with a prediction.
        num_failed: Rows with a reason.
        seconds: From the first read to the written file.
    """

    shard: int
    num_ok: int
    num_failed: int
    seconds: float


class ShardWorker:
    """A Ray Data actor: holds one predictor, works shard after shard.

    Args:
        model_reference: Object-store reference of the `LoadedModel`.
        options: How to run.
    """

    def __init__(self, model_reference: Any, options: WorkerOptions) -> None:
        import cv2
        import ray

        cv2.setNumThreads(1)  # this worker's threads are the ones it was given
        self._model: LoadedModel = ray.get(model_reference)
        self._options = options
        self._predictor = Predictor(
            self._model.package,
            device=options.device,
            precision=options.precision,
            compile_mode=options.compile_mode,
            num_threads=options.num_threads if options.device == "cpu" else None,
            expected_images=options.expected_images,
            cache_folder=Path(options.cache_folder),
        )
        self._readers = ThreadPoolExecutor(max_workers=max(4, options.num_threads))

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Work on one shard, given as a block of manifest rows."""
        started = time.perf_counter()
        number = shard.column(SHARD_COLUMN)[0].as_py()
        uris: list[str] = shard.column("uri").to_pylist()
        outcomes = self._predictor.predict_decoded(list(self._readers.map(self._fetch, uris)))
        seconds = time.perf_counter() - started
        table = result_table(
            shard.column("row").to_pylist(),
            uris,
            outcomes,
            milliseconds=1000 * seconds / len(uris),
            model=self._model,
            top_k=self._options.top_k,
        )
        target = storage.join(self._options.shard_folder, shard_file(number))
        storage.put_atomic(target, encode_table(table, "parquet"))
        num_ok = sum(outcome.ok for outcome in outcomes)
        return pa.table(
            {
                "shard": [number],
                "num_ok": [num_ok],
                "num_failed": [len(outcomes) - num_ok],
                "seconds": [time.perf_counter() - started],
            }
        )

    def _fetch(self, uri: str) -> DecodedImage | Outcome:
        """Read and decode one image; whatever its storage answers becomes an outcome."""
        try:
            data = fetch_image(uri, self._predictor.package.contract)
        except BadImageError as error:
            return Outcome.failed(error.reason, error.message)
        return self._predictor.preprocess(data)
