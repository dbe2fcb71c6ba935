"""Reads the outputs of earlier jobs: results, failures as inputs, and the inputs they had."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eagleray.batch.plan import PredictPlan
from eagleray.batch.results import read_columns
from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.sharded.columns import user_columns
from eagleray.sharded.commit import Commit, read_commit
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from eagleray.sharded.plan import read_plan
from eagleray.sources import LISTING_SCHEMA, Listing

__all__ = ["failures_of", "read_results", "skip_known"]

_DIGEST_BYTES = 16
_URI_AND_VERSION = tuple(LISTING_SCHEMA.get_field_index(name) for name in ("uri", "version"))


def read_results(
    output: str, *, columns: list[str] | None = None, first_row: int = 0
) -> Iterator[pa.Table]:
    """Yield the committed files of an output as tables, in order.

    Args:
        output: Output of a finished job.
        columns: Columns to read; None for all.
        first_row: Number of the first row to read; files that end before it are skipped.

    Raises:
        InputError: If there is no commit.
    """
    layout = OutputLayout(output)
    committed, plan = _require_commit(layout)
    manifest = ManifestReader(layout.manifest(plan.manifest), plan.num_shards)
    user_schema = user_columns(manifest.schema) if columns is None else pa.schema([])
    for file in committed.files:
        if file.first_row + file.num_rows <= first_row:
            continue
        content = storage.read_bytes(storage.join(layout.location, file.name))
        yield read_columns(
            content, plan.work.format, columns, user_schema=user_schema, task=plan.task
        )


def _require_commit(layout: OutputLayout) -> tuple[Commit, PredictPlan]:
    committed, plan = read_commit(layout), read_plan(layout, PredictPlan)
    if committed is None or plan is None:
        raise InputError(
            f"{layout.location} is not the finished output of a job; finish it by running its "
            "command again, or name another."
        )
    return committed, plan


def failures_of(output: str) -> Listing:
    """List the inputs of an earlier job that failed, with the user's own columns.

    Raises:
        InputError: If there is no such job, or nothing failed.
    """
    layout = OutputLayout(output)
    committed, plan = _require_commit(layout)
    if committed.num_failed == 0:
        raise InputError(f"No input of {output} failed; there is nothing to run again.")
    reader = ManifestReader(layout.manifest(plan.manifest), plan.num_shards)

    def tables() -> Iterator[pa.Table]:
        failed = np.concatenate(
            [
                rows.column("row").to_numpy()[rows.column("status").to_numpy() == "failed"]
                for rows in read_results(output, columns=["row", "status"])
            ]
        )
        for rows in reader.tables():
            again = rows.filter(pa.array(np.isin(rows.column("row").to_numpy(), failed)))
            yield again.drop_columns(["row"])

    return Listing(user_schema=user_columns(reader.schema), tables=tables())


def skip_known(tables: Iterable[pa.Table], outputs: Sequence[str]) -> Iterator[pa.Table]:
    """Skip the inputs that earlier jobs had, and yield the new and the changed ones.

    An input is known if its location and its version are. A version changes with the content; where
    the listing has none (a remote location in a table), the location decides.

    Raises:
        InputError: If an output is not that of a finished job, or nothing is left.
    """
    num_left = 0
    known = np.sort(np.concatenate([_known_to(output) for output in outputs]))
    for table in tables:
        # By position: the user's own columns may have names of ours.
        seen = _contained(_digests(*(table.column(place) for place in _URI_AND_VERSION)), known)
        num_left += int(np.count_nonzero(~seen))
        yield table.filter(pa.array(~seen))
    if num_left == 0:
        raise InputError(
            f"No input is new or changed since {', '.join(outputs)}; there is nothing to run."
        )


def _known_to(output: str) -> npt.NDArray[np.bytes_]:
    layout = OutputLayout(output)
    _, plan = _require_commit(layout)  # an unfinished job may not have done all its inputs
    reader = ManifestReader(layout.manifest(plan.manifest), plan.num_shards)
    return np.concatenate(
        [_digests(rows.column("uri"), rows.column("version")) for rows in reader.tables()]
    )


def _digests(uris: pa.ChunkedArray, versions: pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """Return 16 bytes for each row: ten million of them fit into memory, and none collide."""
    pairs = zip(uris.to_pylist(), versions.to_pylist(), strict=True)
    digests = b"".join(
        hashlib.blake2b(f"{uri}\0{version}".encode(), digest_size=_DIGEST_BYTES).digest()
        for uri, version in pairs
    )
    return np.frombuffer(digests, dtype=f"V{_DIGEST_BYTES}").view(f"S{_DIGEST_BYTES}")


def _contained(
    wanted: npt.NDArray[np.bytes_], known: npt.NDArray[np.bytes_]
) -> npt.NDArray[np.bool_]:
    if len(known) == 0:
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[places] == wanted
    return found
