"""Writes checkpoints in a thread while training continues, one at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from eagleray.training.loop.checkpoint import Checkpoint, CheckpointStore, Progress

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes checkpoints asynchronously.

    Args:
        store: Store of the run.
        keep: Number of newest checkpoints to keep.

    Attributes:
        stalled: Seconds that training has waited for checkpoints so far.
    """

    def __init__(self, store: CheckpointStore, *, keep: int) -> None:
        self._store, self._keep = store, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.stalled = 0.0

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors and start to write them.

        Raises:
            OSError: If the previous checkpoint could not be written.
        """
        started = time.perf_counter()
        self.wait()
        copies = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }
        self._pending = self._thread.submit(self._write, Checkpoint(progress, copies))
        self.stalled += time.perf_counter() - started

    def close(self) -> None:
        """Wait until everything is written, and end the thread.

        Raises:
            OSError: If the last checkpoint could not be written.
        """
        self.wait()
        self._thread.shutdown()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: If it could not be written.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, checkpoint: Checkpoint) -> None:
        self._store.put(checkpoint, keep=self._keep)
