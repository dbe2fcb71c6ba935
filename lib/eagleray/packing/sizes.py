"""Estimates the sizes of images that are not listed, so that files get about their size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eagleray.core.errors import InputError
from eagleray.io.fetch import ImageSource
from eagleray.io.fetch.source import cell_column
from eagleray.io.parquet_table import open_parquet

__all__ = ["ExpectedSizes"]

_TYPICAL_BYTES = 128 * 2**10


class ExpectedSizes:
    """Bytes of images: as listed, or the average of their table, or a typical size."""

    def __init__(self) -> None:
        self._averages: dict[str, int] = {}

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        """Return the bytes of each row's image, int64 (N,).

        Args:
            rows: Rows with the columns of a listing.
        """
        sizes = rows.column("size")
        if sizes.null_count == 0:
            listed: npt.NDArray[np.int64] = sizes.to_numpy()
            return listed
        expected = np.full(rows.num_rows, _TYPICAL_BYTES, np.int64)
        containers = rows.column("container")
        packed = pc.equal(rows.column("packing"), "parquet")
        for container in pc.unique(containers.filter(packed)).to_pylist():
            here = pc.fill_null(pc.and_(packed, pc.equal(containers, container)), False)
            first = rows.column("uri")[pc.index(here, True).as_py()].as_py()
            expected[here.to_numpy()] = self._average(container, first)
        known = pc.is_valid(sizes).to_numpy()
        expected[known] = sizes.filter(pc.is_valid(sizes)).to_numpy()
        return expected

    def _average(self, container: str, uri: str) -> int:
        if container not in self._averages:
            column = cell_column(ImageSource(uri, container=container))
            self._averages[container] = _average_bytes(container, column)
        return self._averages[container]


def _average_bytes(container: str, column: str) -> int:
    try:
        with open_parquet(container) as file:
            metadata = file.metadata
    except (OSError, InputError):  # its images will fail one by one
        return _TYPICAL_BYTES
    total = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if chunk.path_in_schema in (column, f"{column}.bytes"):
                total += chunk.total_uncompressed_size
    return int(max(1, total // max(1, metadata.num_rows)))
