"""A detector from its labels to a table, a page and a service, on a real Ray."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eagleray.batch.run import run_job as run_batch
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings, read_settings
from eagleray.inference.predictor import Predictor
from eagleray.models.package import write_package
from eagleray.registry.references import load_model
from eagleray.tasks import Outcome
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.training.job import run_job
from eagleray.training.prepare import open_job
from eagleray.training.spec import TrainSpec
from tests.support.detection import DETECTOR, detector_package, write_shapes
from tests.support.job_folder import open_predict
from tests.support.models import registry_in
from tests.support.numerics import SAME_LOSS
from tests.support.service import running_service
from tests.support.training import train_in_process

pytestmark = pytest.mark.numerical

QUIET = Console(json_output=True)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.detection")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # replicas import it as well


@pytest.mark.parametrize(
    ("prefix", "lowest"),
    [
        ("detector", 0.8),
        pytest.param("fcos", 0.8, marks=pytest.mark.long),
        pytest.param("retinanet", 0.5, marks=pytest.mark.long),
        pytest.param("ssdlite", 0.5, marks=pytest.mark.long),
        pytest.param("fasterrcnn", 0.5, marks=pytest.mark.long),
    ],
)
def test_two_workers_train_a_detector_as_one_does_and_it_finds_objects(
    prefix: str, lowest: float, cluster: Cluster, tmp_path: Path
) -> None:
    table = write_shapes(tmp_path / "shapes", 64)
    spec = TrainSpec.make(
        {
            "data": str(table),
            "task": "detection",
            "name": "shapes",
            "architecture": DETECTOR.replace("detector/", f"{prefix}/"),
            "image_size": 64,
            "epochs": 30,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "lr_schedule": "constant",  # the same for a run of one epoch
            "warmup_ratio": 0,
            "horizontal_flip": True,
            "mosaic": 0.2,
            "thresholds": "f1",
            "workers": 2,
        }
    )
    job = open_job(spec, Settings(), alias="production")
    summary = run_job(job, cluster, QUIET)
    alone, _ = train_in_process(spec.model_copy(update={"epochs": 1}), tmp_path / "alone")
    assert len(alone.losses) == 4
    assert summary.result.losses[:4] == pytest.approx(alone.losses, rel=SAME_LOSS)
    metrics = summary.tested.evaluation.metrics
    assert metrics["map_50"] >= lowest
    assert summary.registered.did_not_learn == ()
    package = load_model("shapes@production").package
    assert Predictor(package, engine="eager").require_healthy().num_images == 4


def test_a_batch_has_the_objects_that_the_predictor_finds(cluster: Cluster, tmp_path: Path) -> None:
    package = detector_package()
    write_package(package, str(tmp_path / "model"))
    write_shapes(tmp_path / "shapes", 12)
    request = PredictSpec(
        inputs=(str(tmp_path / "shapes/*.png"),),
        model=str(tmp_path / "model"),
        output=str(tmp_path / "found"),
        limit=("disc>3", "square<1000"),
        engine="eager",
        precision="float32",
    )
    run_batch(open_predict(request, read_settings(), QUIET), lambda: cluster, QUIET)
    (file,) = (tmp_path / "found").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == 12
    paths = [Path(row["uri"]) for row in rows]
    outcomes = Predictor(package, engine="eager", precision="float32").predict(paths)
    for row, outcome in zip(rows, outcomes, strict=True):
        wanted = outcome.prediction
        assert isinstance(wanted, ObjectsPrediction)
        assert [one["label"] for one in row["objects"]] == [one.label for one in wanted.objects]
        for name in ("score", "x", "y", "width", "height"):
            assert [one[name] for one in row["objects"]] == pytest.approx(
                [getattr(one, name) for one in wanted.objects], abs=1e-2
            )
        assert row["count"] == len(row["objects"]) == row["count_disc"] + row["count_square"]
        exceeded = ["disc>3"] if row["count_disc"] > 3 else []
        assert row["exceeds"] == [*exceeded, "square<1000"]
        for one in row["objects"]:
            assert 0 <= one["x"] <= one["x"] + one["width"] <= 96 + 1e-3
            assert 0 <= one["y"] <= one["y"] + one["height"] <= 64 + 1e-3
    page = (tmp_path / "found/_eagleray/report.html").read_text()
    assert "<figure" in page
    assert '<td><code>square&lt;1000</code></td><td class="number">12</td>' in page


def test_the_service_finds_the_objects_that_the_predictor_finds(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    package = detector_package()
    registry.register(package)
    registry.set_alias("shapes", "production", 1)
    write_shapes(tmp_path / "shapes", 4)
    images = [(tmp_path / f"shapes/{index:03d}.png").read_bytes() for index in range(4)]
    expected = Predictor(package, engine="eager", precision="float32").predict(images)
    words = ["shapes", "--engine", "eager", "--precision", "float32"]
    with running_service(tmp_path / "home", *words) as service:
        url = f"{service.url}/v1/models/shapes/predict"
        for image, outcome in zip(images, expected, strict=True):
            response = httpx.post(url, content=image, timeout=60)
            assert response.status_code == 200, response.text
            (found,) = response.json()["results"]
            wanted = outcome.prediction
            assert isinstance(wanted, ObjectsPrediction)
            assert found["count"] == len(wanted.objects) > 0
            assert [one["label"] for one in found["objects"]] == [
                one.label for one in wanted.objects
            ]
            for name in ("score", "x", "y", "width", "height"):
                assert [one[name] for one in found["objects"]] == pytest.approx(
                    [getattr(one, name) for one in wanted.objects], abs=1e-2
                )
        require_protocol(service.url, images[0], expected[0])
        assert expected[0].prediction is not None
        limit, other = f"{expected[0].prediction.label}>=1", "square>99"
        limited = httpx.post(f"{url}?limit={limit},{other}", content=images[0], timeout=60)
        assert limited.json()["results"][0]["exceeds"] == [limit]
        drawn = httpx.post(url, content=images[0], headers={"accept": "image/png"}, timeout=60)
        assert drawn.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(drawn.content)).size == (96, 64)
        for limit, message in (("cow>1", "No label is named 'cow'"), ("many", "is not a limit")):
            refused = httpx.post(f"{url}?limit={limit}", content=images[0], timeout=60)
            assert refused.status_code == 422
            assert message in refused.json()["detail"]


def require_protocol(url: str, image: bytes, expected: Outcome) -> None:
    """Check the tensors of the Open Inference Protocol."""
    assert isinstance(expected.prediction, ObjectsPrediction)
    content = base64.b64encode(image).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [content]}
    response = httpx.post(f"{url}/v2/models/shapes/infer", json={"inputs": [tensor]}, timeout=60)
    assert response.status_code == 200, response.text
    outputs = {one["name"]: one for one in response.json()["outputs"]}
    count = len(expected.prediction.objects)
    assert outputs["count"]["data"] == [count]
    assert outputs["boxes"]["shape"] == [1, 20, 4]
    assert outputs["labels"]["data"][:count] == [one.label for one in expected.prediction.objects]
    first = expected.prediction.objects[0]
    assert outputs["boxes"]["data"][:4] == pytest.approx(
        [first.x, first.y, first.width, first.height], abs=1e-2
    )
