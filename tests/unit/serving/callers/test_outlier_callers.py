"""The outlier score on its way to callers: a batch job's row, and every answer of the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagleray.batch.context import JobContext, WorkerOptions
from eagleray.batch.shard_decoder import ShardDecoder
from eagleray.batch.shard_predictor import ShardPredictor
from eagleray.batch.shard_summary import decode_shard
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.inference.predictor import Predictor
from eagleray.io.http import UrlPolicy
from eagleray.io.storage import S3Options, read_bytes
from eagleray.models.outliers import OutlierStatistics
from eagleray.models.package import ModelPackage, write_package
from eagleray.outliers.job import with_outliers
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from tests.support.job_folder import open_predict
from tests.support.models import golden_png, registry_in, settings_in, small_package
from tests.support.serving import RunningApp, with_service

pytestmark = pytest.mark.numerical

IMAGES = [golden_png(seed) for seed in range(4)]


def scored_package() -> ModelPackage:
    """Return a package with statistics of no images, whose levels are an even grid."""
    package = small_package(name="digits", golden_images=IMAGES[:1])
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(84, 8)))[0].astype(np.float32)
    grid = np.linspace(-30, 30, 1000, dtype=np.float32)
    statistics = OutlierStatistics(
        np.zeros(84, np.float32), directions, np.full(1, 40, np.float32), grid
    )
    return with_outliers(package, statistics, package.manifest.lineage)


def expected_scores(package: ModelPackage) -> list[float]:
    predictor = Predictor(package, engine="eager", precision="float32", device="cpu")
    outcomes = predictor.predict(IMAGES)
    found = [one.prediction.outlier_score for one in outcomes if one.prediction is not None]
    scores = [score for score in found if score is not None]
    assert len(set(scores)) > 1
    assert 0 < min(scores) < max(scores) < 1
    return scores


def test_a_shard_has_the_score_of_each_image(tmp_path: Path) -> None:
    package = scored_package()
    write_package(package, str(tmp_path / "model"))
    (tmp_path / "in").mkdir()
    for index, image in enumerate(IMAGES):
        (tmp_path / "in" / f"{index}.png").write_bytes(image)
    (tmp_path / "in" / "9.png").write_bytes(b"not an image")
    spec = PredictSpec(
        inputs=(str(tmp_path / "in"),),
        model=str(tmp_path / "model"),
        output=str(tmp_path / "out"),
        precision="float32",
    )
    job = open_predict(spec, settings_in(tmp_path), Console(json_output=True))
    options = WorkerOptions(3, "cpu", "float32", "eager", 1, 1, 1, 60.0, 5, str(tmp_path))
    folder = job.layout.manifest(job.plan.manifest)
    context = JobContext(
        job.model, job.layout.location, folder, 1, options, UrlPolicy(), S3Options()
    )
    shard = ManifestReader(folder, 1).shard(0)
    decoded = ShardDecoder(context).decode(shard, sandboxed=False)
    ShardPredictor(context).predict(0, shard, decoded, 0.0)
    table, _ = decode_shard(read_bytes(OutputLayout(job.layout.location).shard(0)))
    scores = table.column("outlier_score").to_pylist()
    assert scores.pop() is None
    np.testing.assert_allclose(scores, expected_scores(package), atol=0.002)


def test_the_service_answers_with_the_score(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    registry.register(scored_package())
    registry.set_alias("digits", "production", 1)
    expected = expected_scores(scored_package())

    async def ask(running: RunningApp) -> None:
        files = [("images", (f"{at}.png", image)) for at, image in enumerate(IMAGES)]
        response = await running.client.post("/v1/models/digits/predict", files=files)
        found = [result["outlier_score"] for result in response.json()["results"]]
        np.testing.assert_allclose(found, expected, atol=0.002)
        described = (await running.client.get("/v2/models/digits")).json()
        assert described["outputs"][-1] == {
            "name": "outlier_score",
            "datatype": "FP32",
            "shape": [-1],
        }

    with_service(registry, ask)
