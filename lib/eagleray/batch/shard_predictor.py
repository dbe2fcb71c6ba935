"""Predicts the decoded images of a shard and puts its result."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from eagleray.batch.context import JobContext
from eagleray.batch.results import ResultWriter, result_schema
from eagleray.batch.shard_summary import ShardSummary, decode_shard, encode_shard
from eagleray.core.errors import UnsupportedError
from eagleray.imaging import DecodedImage
from eagleray.imaging.tiles import TiledImage
from eagleray.inference.prefetcher import DecodedItem
from eagleray.io import storage
from eagleray.io.tables import texts_of
from eagleray.models.attributes import Attribute, Features, encode_columns
from eagleray.sharded.columns import USER_PREFIX
from eagleray.sharded.layout import OutputLayout
from eagleray.tasks.limits import CountLimit
from eagleray.tasks.outcome import Outcome

__all__ = ["ShardPredictor"]


class ShardPredictor:
    """Holds a predictor, and turns decoded shards into results.

    Args:
        context: What the worker needs to know.

    Raises:
        UnsupportedError: If this machine cannot run the model as requested; the message names it.
    """

    def __init__(self, context: JobContext) -> None:
        # The driver imports this module without PyTorch.
        from eagleray.inference.predictor import Predictor

        options = context.options
        self._layout = OutputLayout(context.output)
        try:
            self._predictor = Predictor(
                context.model.package,
                device=options.device,
                precision=options.precision,
                engine=options.engine,
                num_threads=options.num_threads if options.device == "cpu" else None,
                num_callers=options.shards_at_a_time,
                expected_images=options.expected_images,
                cache_folder=Path(options.cache_folder),
            )
        except UnsupportedError as error:
            raise UnsupportedError(f"On node {socket.gethostname()}: {error}") from error
        self._predictor.require_healthy()
        limits = tuple(map(CountLimit.parse, options.limit))
        schema = result_schema(
            context.model,
            context.manifest.schema,
            has_limits=bool(limits),
            has_masks=options.masks,
        )
        self._writer = ResultWriter(context.model, schema, options.top_k, limits)

    def find_result(self, shard: int) -> ShardSummary | None:
        """Return the summary of a shard whose result was put by a worker that died after it."""
        try:
            return decode_shard(storage.read_bytes(self._layout.shard(shard)))[1]
        except (FileNotFoundError, ValueError):  # none, or a damaged one, which is made anew
            return None

    def predict(
        self,
        shard: int,
        rows: pa.Table,
        decoded: Iterator[DecodedItem],
        started: float,
        *,
        repeated: bool = False,
    ) -> ShardSummary:
        """Predict a shard and put its result.

        Args:
            shard: Number of the shard.
            rows: Its rows in the manifest.
            decoded: Its images, in any order.
            started: Start of the work on it, in seconds since the epoch.
            repeated: Whether it was begun before, by a worker that was lost.
        """
        outcomes: list[Outcome | None] = [None] * rows.num_rows
        milliseconds = [0.0] * rows.num_rows
        attributes = _attributes_of(rows, self._predictor.package.attributes)
        for group in _full_batches(decoded, self._predictor.plan.batch_size):
            for index, outcome, duration in self._predict(group, attributes):
                outcomes[index], milliseconds[index] = outcome, duration
            group.clear()  # or the pixels of a large image would be kept while the next is decoded
        complete = [outcome for outcome in outcomes if outcome is not None]
        assert len(complete) == rows.num_rows
        table = self._writer.table(rows, complete, milliseconds)
        summary = self._summarise(shard, complete, started, repeated=repeated)
        storage.put_atomic(self._layout.shard(shard), encode_shard(table, summary))
        return summary

    def _predict(
        self, group: Sequence[DecodedItem], attributes: Features | None
    ) -> Iterator[tuple[int, Outcome, float]]:
        """Yield the index of each image, its outcome, and the milliseconds that it took."""
        before = time.perf_counter()
        predicted = self._predictor.predict_decoded(
            [item.image for item in group],
            None if attributes is None else attributes[[item.index for item in group]],
        )
        share = 1000 * (time.perf_counter() - before) / len(group)
        indices = [(item.index, item.milliseconds + share) for item in group]
        for (index, duration), outcome in zip(indices, predicted, strict=True):
            yield index, outcome, duration

    def _summarise(
        self, shard: int, outcomes: Sequence[Outcome], started: float, *, repeated: bool
    ) -> ShardSummary:
        failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
        reasons = Counter(failure.reason.value for failure in failures)
        return ShardSummary(
            shard,
            len(outcomes) - len(failures),
            len(failures),
            started,
            time.time(),
            engine=self._predictor.engine,
            failures=json.dumps(reasons) if reasons else "",
            repeated=repeated,
        )


def _attributes_of(rows: pa.Table, attributes: Sequence[Attribute]) -> Features | None:
    """Return the features that the network takes from the user's columns, if it takes any."""
    if not attributes:
        return None
    columns = {one.name: texts_of(rows.column(USER_PREFIX + one.name)) for one in attributes}
    return encode_columns(attributes, columns)


def _full_batches(decoded: Iterator[DecodedItem], size: int) -> Iterator[list[DecodedItem]]:
    """Group items into full batches; failed images join a group without filling a place in it.

    An image in tiles is a group by itself, which its tiles fill.
    """
    group: list[DecodedItem] = []
    num_decoded = 0
    for item in decoded:
        if isinstance(item.image, TiledImage):
            alone = [item]
            del item  # its pixels end with the group
            yield alone
            continue
        group.append(item)
        num_decoded += isinstance(item.image, DecodedImage)
        if num_decoded == size:
            yield group
            group, num_decoded = [], 0
    if group:
        yield group
