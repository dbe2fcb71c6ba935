"""Reads the predictions and the steady speed of a run, and compares them with the reference."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet

from tests.bench.peers import STEADY_FILE

__all__ = [
    "Agreement",
    "Predictions",
    "agreement",
    "our_steady_state",
    "read_predictions",
    "steady_state",
]

_TIMELINE = "_eagleray/timeline.parquet"

Predictions = dict[str, tuple[str, float]]
"""File name -> label and its probability."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one set of predictions compares with another.

    Attributes:
        same_label: Share of the images with the same label.
        mean_moved: Mean difference of the label's probability, as a share of the reference's, over
            the images with the same label.
        largest_moved: Largest of these differences.
    """

    same_label: float
    mean_moved: float
    largest_moved: float


def read_predictions(output: Path, *, num_images: int) -> Predictions:
    """Read the Parquet files of a run, ours or a peer's.

    Raises:
        RuntimeError: If not every image has exactly one prediction.
    """
    table = pyarrow.parquet.read_table(output)
    location = "uri" if "uri" in table.column_names else "path"
    columns = [table.column(name).to_pylist() for name in (location, "label", "score")]
    predictions = {
        str(uri).rsplit("/", 1)[-1]: (label, score)
        for uri, label, score in zip(*columns, strict=True)
        if label is not None
    }
    if not len(predictions) == table.num_rows == num_images:
        raise RuntimeError(
            f"{output}: {num_images} images went in, {table.num_rows} rows came out, and "
            f"{len(predictions)} of the images have a prediction."
        )
    return predictions


def agreement(predictions: Predictions, reference: Predictions) -> Agreement:
    """Compare predictions to the same images."""
    same = [name for name, (label, _) in predictions.items() if label == reference[name][0]]
    moved = [abs(predictions[name][1] / reference[name][1] - 1) for name in same] or [float("nan")]
    return Agreement(len(same) / len(reference), float(np.mean(moved)), max(moved))


def steady_state(output: Path) -> float | None:
    """Images a second once a run is under way, if known.

    That is the hand-written loop's own count, and for ours what the timeline says.
    """
    own_count = output / STEADY_FILE
    if own_count.exists():
        return float(json.loads(own_count.read_text())["images_per_second"])
    if (output / _TIMELINE).exists():
        steady = our_steady_state(output)
        return None if math.isnan(steady) else steady
    return None


def our_steady_state(output: Path) -> float:
    """Images a second from our first finished shard to the start of the last one.

    Before that the workers are starting, after it they run out of work. A shard that reaches over
    an edge counts for the share of its time inside. NaN where a run was too short to have a middle.
    """
    table = pyarrow.parquet.read_table(output / _TIMELINE)
    num_ok, num_failed, started, finished = (
        table.column(name).to_numpy() for name in ("num_ok", "num_failed", "started", "finished")
    )
    begin, end = finished.min(), started.max()
    if end <= begin:
        return math.nan
    inside = np.clip(np.minimum(finished, end) - np.maximum(started, begin), 0, None)
    rows = (num_ok + num_failed) * inside / (finished - started)
    return float(rows.sum() / (end - begin))
