"""The predictions of an evaluation, image by image, as they are kept beside its record.

Two versions that were evaluated on the same images are compared by them, image by image.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.tasks import Task

if TYPE_CHECKING:  # the registry does not need PyTorch before it reads predictions
    from torch import Tensor

    from eagleray.evaluation.evaluate import Evaluation

__all__ = ["MAX_PREDICTION_BYTES", "ImagePredictions", "take_common"]

MAX_PREDICTION_BYTES = 16 * 2**20
"""Maximum size of the predictions of an evaluation that are kept, and of the file with them."""

_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("outputs", pa.list_(pa.float32()), nullable=False),
        pa.field("target", pa.list_(pa.float64()), nullable=False),  # of labels up to 2**48
    ]
)


@dataclass(frozen=True)
class ImagePredictions:
    """Predictions of one model for the images of one evaluation.

    Attributes:
        rows: Rows of the M measured images in the data, ascending, int64 (M,).
        outputs: Observations, such as activated outputs, float32 (M, …).
        targets: Encoded targets (M, …).
    """

    rows: npt.NDArray[np.int64]
    outputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, evaluation: Evaluation) -> ImagePredictions:
        """Return the predictions of an evaluation."""
        return cls(evaluation.rows, evaluation.outputs, evaluation.targets)

    def take(self, rows: npt.NDArray[np.int64]) -> ImagePredictions:
        """Return the predictions for some rows, which must be among these."""
        places = np.searchsorted(self.rows, rows)
        return ImagePredictions(self.rows[places], self.outputs[places], self.targets[places])

    def to_parquet(self) -> bytes | None:
        """Return the content of a Parquet file; None if it would be too large to be kept."""
        outputs = self.outputs.detach().cpu().float().reshape(len(self.rows), -1).numpy()
        targets = self.targets.detach().cpu().double().reshape(len(self.rows), -1).numpy()
        if outputs.nbytes + targets.nbytes > MAX_PREDICTION_BYTES:
            return None
        columns = [self.rows, *(_as_lists(values) for values in (outputs, targets))]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, content: bytes, task: Task) -> ImagePredictions:
        """Read what `to_parquet` wrote.

        Args:
            content: Content of the file.
            task: Task of the model.

        Raises:
            ValueError: If it is not such a file, or not of this task.
        """
        import torch

        try:
            table = pq.read_table(pa.BufferReader(content)).select(_SCHEMA.names).cast(_SCHEMA)
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(str(error).splitlines()[0]) from None
        rows = table["row"].to_numpy()
        outputs = _as_tensor(table["outputs"], len(rows))
        targets = _as_tensor(table["target"], len(rows))
        num_rows, *row = task.observation_shape
        if task.observes_rows:
            num_rows = outputs.shape[1] // math.prod(row)
        num_values = num_rows * math.prod(row)
        if outputs.shape[1] != num_values or (np.diff(rows) <= 0).any():
            raise ValueError(f"it is not of a {task.name} model with {num_values} outputs")
        outputs = outputs.reshape(-1, num_rows, *row)
        targets = task.shape_targets(targets)
        return cls(rows, outputs, targets.to(getattr(torch, task.target_dtype)))


def take_common(
    first: ImagePredictions, second: ImagePredictions, *, without: npt.NDArray[np.int64]
) -> tuple[ImagePredictions, ImagePredictions]:
    """Return the predictions of two models for the images that both have measured.

    Args:
        first: Predictions of one model.
        second: Predictions of the other for the same data.
        without: Rows of the data that are left out.
    """
    rows = np.setdiff1d(np.intersect1d(first.rows, second.rows), without)
    return first.take(rows), second.take(rows)


def _as_lists(values: npt.NDArray[np.floating[Any]]) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def _as_tensor(column: pa.ChunkedArray, count: int) -> Tensor:
    """Return lists of one length as a tensor (count, length).

    Raises:
        ValueError: If their lengths differ.
    """
    import torch

    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(values).reshape(count, -1))
