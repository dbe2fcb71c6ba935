"""After the last step, for each task: calibrated, tested once, packed with golden images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray.core.settings import Settings
from eagleray.inference.predictor import Predictor
from eagleray.tasks import Binary, Multiclass, Multilabel, Regression
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.trainer import Trainer
from eagleray.training.registration.packaging import FinishedModel, finish_model
from eagleray.training.result import load_best_checkpoint
from tests.support.training import plan_for, small_spec

pytestmark = pytest.mark.numerical

LABELS = {
    "multiclass": ("dark", "gray", "bright"),
    "binary": ("dim", "light"),
    "multilabel": ("not-dark", "not-gray", "not-bright"),
}


def write_table(folder: Path, count: int = 120) -> Path:
    """Plain images whose brightness says every label."""
    generator = np.random.default_rng(0)
    rows = ["path,multiclass,binary,multilabel,regression"]
    for index in range(count):
        level = int(generator.integers(0, 256))
        Image.new("L", (32, 32), level).save(folder / f"{index}.png")
        third = LABELS["multiclass"][level * 3 // 256]
        tags = "|".join(tag for tag in LABELS["multilabel"] if tag != f"not-{third}")
        half = LABELS["binary"][level * 2 // 256]
        rows.append(f"{index}.png,{third},{half},{tags},{level}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("levels"))


def finish(table: Path, home: Path, task: str, **changes: Any) -> FinishedModel:
    fields = {"epochs": 15, "batch_size": 16, "learning_rate": 3e-3, **changes}
    spec = small_spec(table, task=task, label_column=task, name=task, **fields)
    plan, worker_input = plan_for(spec, home)
    Trainer(worker_input, single_process(spec), lambda _: None).run()
    load_best_checkpoint(worker_input.checkpoint_folder, plan.module, epochs=spec.epochs)
    return finish_model(
        plan, plan.module, cache_folder=Settings(home=home).cache_folder, mlflow_run=None
    )


def test_a_model_is_tested_in_float32_wherever_bfloat16_is_faster(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Predictor] = []

    class Recorded(Predictor):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            built.append(self)

    monkeypatch.setattr("eagleray.training.registration.packaging.Predictor", Recorded)
    finish(table, tmp_path, "multiclass", epochs=1)
    assert [predictor.plan.precision for predictor in built] == ["float32", "float32"]


@pytest.mark.parametrize(
    ("task", "kind", "metric", "least"),
    [
        ("multiclass", Multiclass, "accuracy", 0.8),
        ("binary", Binary, "accuracy", 0.85),
        ("multilabel", Multilabel, "f1_macro", 0.8),
        ("regression", Regression, "r2", 0.9),
    ],
)
def test_every_task_is_trained_tested_and_packaged(
    table: Path, tmp_path: Path, task: str, kind: type, metric: str, least: float
) -> None:
    tested = finish(table, tmp_path, task, thresholds="f1")
    package = tested.package
    assert isinstance(package.task, kind)
    assert tested.evaluation.metrics[metric] >= least
    assert package.manifest.metrics[f"test_{metric}"] == tested.evaluation.metrics[metric]
    assert tested.record.metrics == tested.evaluation.metrics
    assert tested.record.package_digest == package.digest
    lineage = package.manifest.lineage
    assert lineage.test_digest == tested.record.data_digest
    assert lineage.split_digest is not None
    assert Predictor(package, engine="eager").require_healthy().num_images == 4
    if task != "regression":
        assert package.manifest.model_dump()["task"]["temperature"] != 1.0


def test_without_calibration_the_task_is_unchanged(table: Path, tmp_path: Path) -> None:
    tested = finish(table, tmp_path, "binary", epochs=2, calibrate=False)
    assert isinstance(tested.package.task, Binary)
    assert (tested.package.task.temperature, tested.package.task.threshold) == (1.0, 0.5)
