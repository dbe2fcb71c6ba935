"""Readers that poll an output for as long as it is attacked, in processes of their own.

The first kind follows `_manifest.json`, checks every part's digest and rows, and must see nothing
or all. The second takes whatever part files are in the folder, as a tool that knows nothing of us
does; it may see some of the parts before the commit, but not once `_SUCCESS` is there.
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
from tests.chaos.tally import Tally
from tests.support.processes import Child

_SECONDS_BETWEEN_POLLS = {"disk": 0.02, "S3": 0.05}
_SECONDS_TO_SETTLE = 60.0


class Seen(IntEnum):
    """What a poll found."""

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
        place: Where outputs are.
        output_of: Gives the location of an output by its number.
        num_rows: Of every output.
    """

    def __init__(self, place: Place, output_of: Callable[[int], str], num_rows: int) -> None:
        shared = mmap.mmap(-1, 8 * (1 + 2 * _SLOTS))
        board = np.frombuffer(shared, np.int64)
        self._current, board = board[:1], board[1:]
        self._current[0] = -1
        self._following, self._naive = board[:_SLOTS], board[_SLOTS:]
        seconds = _SECONDS_BETWEEN_POLLS[place.name]

        def poll(counts: _Counts, look: Callable[[str], Seen]) -> None:
            storage.use_s3(place.s3)
            while True:
                number = int(self._current[0])
                counts[_BEGUN] += 1
                if number >= 0:
                    _count(counts, look, output_of(number))
                counts[_ENDED] += 1
                time.sleep(seconds)

        follow, take_all = Following(num_rows), Naive(place, num_rows, self._naive)
        self._children = [
            Child(lambda: poll(self._following, follow)),
            Child(lambda: poll(self._naive, take_all)),
        ]

    def watch(self, number: int) -> None:
        """Look at another output from now on."""
        self._current[0] = number
        self.settle()

    def settle(self) -> None:
        """Wait until each has looked at what is there now."""
        deadline = time.monotonic() + _SECONDS_TO_SETTLE
        for counts in (self._following, self._naive):
            begun = int(counts[_BEGUN])
            while counts[_ENDED] < begun + 1:
                assert time.monotonic() < deadline, "a reader hangs"
                time.sleep(0.001)

    def stop(self, tally: Tally) -> None:
        """End them, and write down what they saw."""
        for child in self._children:
            child.kill()
            child.wait()
        following, naive = self._following, self._naive
        bad = [Seen.PARTIAL, Seen.DOUBLED, Seen.BROKEN, Seen.CHANGED]
        tally.reads += int(following[: len(Seen)].sum())
        tally.partial += int(following[bad].sum())
        tally.naive_reads += int(naive[: len(Seen)].sum())
        tally.naive_partial += int(naive[bad].sum())
        tally.naive_marked_partial += int(naive[_MARKED_PARTIAL])
        tally.counts["reads that saw the whole table"] += int(following[Seen.WHOLE])
        tally.counts["naive reads that saw the whole table"] += int(naive[Seen.WHOLE])
        for seen in bad[1:]:
            tally.counts[f"reads that saw it {seen.name.lower()}"] += int(following[seen])
            tally.counts[f"naive reads that saw it {seen.name.lower()}"] += int(naive[seen])
        tally.counts = +tally.counts


@contextlib.contextmanager
def polling(
    tally: Tally, place: Place, output_of: Callable[[int], str], num_rows: int
) -> Iterator[Readers]:
    """Keep readers for as long as the block lasts, and count what they saw."""
    readers = Readers(place, output_of, num_rows)
    try:
        yield readers
    finally:
        readers.stop(tally)


def _count(counts: _Counts, look: Callable[[str], Seen], output: str) -> None:
    try:
        seen = look(output)
    except Exception:  # noqa: BLE001 - whatever a reader meets, its user meets
        traceback.print_exc()
        sys.stderr.write(f"a reader could not read {output}\n")
        seen = Seen.BROKEN
    counts[seen] += 1


def verdict(rows: npt.NDArray[np.int64], num_rows: int) -> Seen:
    """Judge a table by its row numbers."""
    if len(rows) == 0:
        return Seen.NOTHING
    if len(np.unique(rows)) < len(rows):
        return Seen.DOUBLED
    whole = len(rows) == num_rows and rows.min() == 0 and rows.max() == num_rows - 1
    return Seen.WHOLE if whole else Seen.PARTIAL


class Following:
    """Reads what is committed, and nothing else."""

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
        return verdict(pa.concat_tables(tables).column("row").to_numpy(), self._num_rows)


class Naive:
    """Reads all part files with Arrow alone, through Arrow's own S3 client."""

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
        seen = verdict(rows.to_numpy(zero_copy_only=False), self._num_rows)
        if marked and seen is not Seen.WHOLE:
            self._counts[_MARKED_PARTIAL] += 1
        return seen


def arrow_filesystem(place: Place) -> Any:
    """Open a place with nothing but Arrow."""
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
