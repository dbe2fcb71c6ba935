"""Attributes from the table to the answer, on a real Ray: train, register, evaluate, predict."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest

from eagleray.batch.run import run_job as run_batch
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.core.types import TOLERANCE
from eagleray.data.labelled import read_labelled
from eagleray.data.split_file import read_named_split
from eagleray.evaluation.evaluate import evaluate
from eagleray.inference.predictor import Predictor
from eagleray.registry.references import load_model
from eagleray.training.job import run_job
from eagleray.training.prepare import open_job
from tests.support.attributes import write_sites
from tests.support.job_folder import open_predict
from tests.support.training import small_spec

pytestmark = pytest.mark.numerical


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_learn_what_only_both_can_tell(
    cluster: Cluster, tmp_path: Path, strategy: str
) -> None:
    table = write_sites(tmp_path / "sites", 160)
    spec = small_spec(
        table,
        attributes=["age", "site"],
        epochs=20,
        batch_size=16,
        workers=2,
        strategy=strategy,
        precision="float32",
    )
    quiet = Console(json_output=True)
    summary = run_job(open_job(spec, Settings(), alias="candidate"), cluster, quiet)
    assert summary.tested.evaluation.metrics["accuracy"] >= 0.95

    model = load_model(summary.version.reference)
    test = read_named_split(summary.run.split_file, "test")
    again = evaluate(Predictor(model.package, precision="float32"), test)
    assert again.metrics["accuracy"] == summary.tested.evaluation.metrics["accuracy"]
    measured = evaluate(Predictor(model.package, precision="float32"), read_labelled(str(table)))
    request = PredictSpec(
        inputs=(str(table),),
        model=summary.version.reference,
        output=str(tmp_path / "out"),
        precision="float32",
    )
    run_batch(open_predict(request, Settings(), quiet), lambda: cluster, quiet)
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    scores = measured.outputs.max(dim=1).values.tolist()
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=TOLERANCE["float32"])
    labels = [model.package.task.labels[index] for index in measured.outputs.argmax(dim=1)]
    assert [row["label"] for row in rows] == labels
