"""Polls an output while it is attacked, in two reading processes.

The first kind follows `_manifest.json`, checks every file's digest and rows, and must see nothing
or all. The second reads all result files in the folder, as a tool without knowledge of the format
does; it may see some of the files before the commit, but not once `_SUCCESS` is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from enum import IntEnum, auto
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset

from eagleray.batch.earlier import read_results
from eagleray.io import storage
from eagleray.sharded.commit import read_commit
from eagleray.sharded.layout import OutputLayout
from tests.chaos.places import Place
from tests.chaos.scenario_result import ScenarioResult
from tests.support.processes import Child

_SECONDS_BETWEEN_POLLS = {"disk": 0.02, "S3": 0.05}
_SECONDS_TO_POLL = 60.0


class Seen(IntEnum):
    """Result of a poll."""

    NOTHING = 0
    WHOLE = auto()
    PARTIAL = auto()
    DOUBLED = auto()
    BROKEN = auto()
    CHANGED = auto()


_BEGUN, _ENDED = len(Seen), len(Seen) + 1
_MARKED_PARTIAL = len(Seen) + 2
_SLOTS = len(Seen) + 3
_Counts = npt.NDArray[np.int64]


class Readers:
    """Two polling processes.

    Args:
        place: Storage of the outputs.
        output_of: Returns the location of an output by its number.
        num_rows: Number of rows of every output.
    """

    def __init__(self, place: Place, output_of: Callable[[int], str], num_rows: int) -> None:
        memory = mmap.mmap(-1, 8 * (1 + 2 * _SLOTS))
        shared = np.frombuffer(memory, np.int64)
        self._current, shared = shared[:1], shared[1:]
        self._current[0] = -1
        self._following, self._naive = shared[:_SLOTS], shared[_SLOTS:]
        seconds = _SECONDS_BETWEEN_POLLS[place.name]

        def poll(counts: _Counts, read: Callable[[str], Seen]) -> None:
            storage.use_s3(place.s3)
            while True:
                number = int(self._current[0])
                counts[_BEGUN] += 1
                if number >= 0:
                    _count(counts, read, output_of(number))
                counts[_ENDED] += 1
                time.sleep(seconds)

        follow, take_all = Following(num_rows), Naive(place, num_rows, self._naive)
        self._children = [
            Child(lambda: poll(self._following, follow)),
            Child(lambda: poll(self._naive, take_all)),
        ]

    def watch(self, number: int) -> None:
        """Poll another output from now on."""
        self._current[0] = number
        self.wait_for_polls()

    def wait_for_polls(self) -> None:
        """Wait until each has polled the present state."""
        deadline = time.monotonic() + _SECONDS_TO_POLL
        for counts in (self._following, self._naive):
            begun = int(counts[_BEGUN])
            while counts[_ENDED] < begun + 1:
                assert time.monotonic() < deadline, "a reader hangs"
                time.sleep(0.001)

    def stop(self, result: ScenarioResult) -> None:
        """End the processes, and add their counts to the result."""
        for child in self._children:
            child.kill()
            child.wait()
        following, naive = self._following, self._naive
        bad = [Seen.PARTIAL, Seen.DOUBLED, Seen.BROKEN, Seen.CHANGED]
        result.reads += int(following[: len(Seen)].sum())
        result.partial += int(following[bad].sum())
        result.naive_reads += int(naive[: len(Seen)].sum())
        result.naive_partial += int(naive[bad].sum())
        result.naive_marked_partial += int(naive[_MARKED_PARTIAL])
        result.counts["reads that saw the whole table"] += int(following[Seen.WHOLE])
        result.counts["naive reads that saw the whole table"] += int(naive[Seen.WHOLE])
        for seen in bad[1:]:
            result.counts[f"reads that saw it {seen.name.lower()}"] += int(following[seen])
            result.counts[f"naive reads that saw it {seen.name.lower()}"] += int(naive[seen])
        result.counts = +result.counts


@contextlib.contextmanager
def polling(
    result: ScenarioResult, place: Place, output_of: Callable[[int], str], num_rows: int
) -> Iterator[Readers]:
    """Run readers during the block, and count their polls."""
    readers = Readers(place, output_of, num_rows)
    try:
        yield readers
    finally:
        readers.stop(result)


def _count(counts: _Counts, read: Callable[[str], Seen], output: str) -> None:
    try:
        seen = read(output)
    except Exception:  # noqa: BLE001 - every error of a reader is counted
        traceback.print_exc()
        sys.stderr.write(f"a reader could not read {output}\n")
        seen = Seen.BROKEN
    counts[seen] += 1


def classify_rows(rows: npt.NDArray[np.int64], num_rows: int) -> Seen:
    """Classify a table by its row numbers."""
    if len(rows) == 0:
        return Seen.NOTHING
    if len(np.unique(rows)) < len(rows):
        return Seen.DOUBLED
    whole = len(rows) == num_rows and rows.min() == 0 and rows.max() == num_rows - 1
    return Seen.WHOLE if whole else Seen.PARTIAL


class Following:
    """Reads committed files only."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._runs: dict[str, str] = {}

    def __call__(self, output: str) -> Seen:
        layout = OutputLayout(output)
        committed = read_commit(layout)
        if committed is None:
            return Seen.CHANGED if output in self._runs else Seen.NOTHING
        if self._runs.setdefault(output, committed.run) != committed.run:
            return Seen.CHANGED
        for file in committed.files:
            content = storage.read_bytes(storage.join(layout.location, file.name))
            if hashlib.sha256(content).hexdigest() != file.sha256:
                return Seen.BROKEN
        tables = list(read_results(output, columns=["row"]))
        if [table.num_rows for table in tables] != [file.num_rows for file in committed.files]:
            return Seen.BROKEN
        return classify_rows(pa.concat_tables(tables).column("row").to_numpy(), self._num_rows)


class Naive:
    """Reads all result files with Arrow alone, through Arrow's own S3 client."""

    def __init__(self, place: Place, num_rows: int, counts: _Counts) -> None:
        self._place, self._num_rows, self._counts = place, num_rows, counts
        self._filesystem: Any = None

    def __call__(self, output: str) -> Seen:
        if self._filesystem is None:
            self._filesystem = arrow_filesystem(self._place)
        path = output.removeprefix("s3://")
        success = self._filesystem.get_file_info(f"{path}/_SUCCESS")
        marked = success.type != pa.fs.FileType.NotFound
        try:
            dataset = pa.dataset.dataset(path, filesystem=self._filesystem, format="parquet")
            rows = (
                dataset.to_table(columns=["row"]).column("row") if dataset.files else pa.array([])
            )
        except FileNotFoundError:
            rows = pa.array([])
        seen = classify_rows(rows.to_numpy(zero_copy_only=False), self._num_rows)
        if marked and seen is not Seen.WHOLE:
            self._counts[_MARKED_PARTIAL] += 1
        return seen


def arrow_filesystem(place: Place) -> Any:
    """Open a place with Arrow alone."""
    import pyarrow.fs

    if place.on_disk:
        return pyarrow.fs.LocalFileSystem()
    endpoint = str(place.s3.endpoint)
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint.removeprefix("http://"),
        scheme="http",
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_DEFAULT_REGION"],
    )
