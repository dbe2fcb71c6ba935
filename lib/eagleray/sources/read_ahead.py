"""Streams read side by side with a few threads, and joined in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

__all__ = ["NUM_THREADS", "in_order"]

NUM_THREADS = 8  # they wait for storage
_STREAMS_AHEAD = 16

_Next = Future[pa.Table | None]


def in_order(pieces: Iterator[pa.Table | Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Yield the tables of all pieces, in order.

    The pieces that follow are begun in the meantime, and each holds one table ready, so memory
    does not grow with their number or their length.

    Args:
        pieces: Tables, and streams of tables.
    """
    pool = ThreadPoolExecutor(NUM_THREADS)
    waiting: deque[pa.Table | tuple[Iterator[pa.Table], _Next]] = deque()
    try:
        for piece in pieces:
            begun = isinstance(piece, pa.Table)
            waiting.append(piece if begun else (piece, pool.submit(next, piece, None)))
            if len(waiting) > _STREAMS_AHEAD:
                yield from _read(waiting.popleft(), pool)
        while waiting:
            yield from _read(waiting.popleft(), pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(
    piece: pa.Table | tuple[Iterator[pa.Table], _Next], pool: ThreadPoolExecutor
) -> Iterator[pa.Table]:
    if isinstance(piece, pa.Table):
        yield piece
        return
    stream, future = piece
    while (table := future.result()) is not None:
        future = pool.submit(next, stream, None)
        yield table
