"""Versions in a registry, with evaluations, for the tests of what compares and moves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.data.split_file import SPLIT_SCHEMA
from eagleray.evaluation.kpi import parse_kpis
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.evaluation.record import EvaluationRecord
from eagleray.registry.registry import ModelVersion, Registry
from tests.support.models import golden_png, small_package

__all__ = ["EASY", "HARD", "KPIS", "evaluated", "keep_split", "register"]

EASY, HARD = "a" * 64, "b" * 64
"""Digests of two sets of images."""
KPIS = parse_kpis("accuracy >= 0.9\nf1_macro >= current - 0.01", where="kpi.txt")


def register(registry: Registry, name: str, count: int = 1, **overrides: Any) -> list[ModelVersion]:
    """Register versions that differ, with enough golden images to be checked by."""
    found = []
    for number in range(count):
        metrics = {"accuracy": 0.5 + number / 100}
        given = {"name": name, "metrics": metrics, "golden_images": [golden_png(0)], **overrides}
        found.append(registry.register(small_package(**given)))
    return found


def evaluated(
    registry: Registry,
    version: ModelVersion,
    accuracy: float,
    f1: float = 0.9,
    *,
    data: str = "parts/test",
    digest: str = EASY,
    created: str = "2026-01-01T00:00:00+00:00",
    predictions: ImagePredictions | None = None,
    **changes: Any,
) -> EvaluationRecord:
    record = EvaluationRecord(
        data=data,
        data_digest=digest,
        package_digest=version.digest,
        num_images=100,
        num_failed=0,
        metrics={"accuracy": accuracy, "f1_macro": f1},
        created=created,
        **changes,
    )
    registry.record_evaluation(version, record, predictions)
    return record


def keep_split(registry: Registry, version: ModelVersion, rows: Sequence[tuple[str, ...]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, names=SPLIT_SCHEMA.names)
    assert version.run_folder is not None
    path = Path(version.run_folder) / "split.parquet"
    pq.write_table(table, path, row_group_size=2)
