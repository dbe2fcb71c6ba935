"""The predict job on a real Ray: every image accounted for, in every format, on two cores."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import pytest
from PIL import Image

from eagleray.batch.job import Job
from eagleray.batch.pipeline import WorkerPool, shard_dataset
from eagleray.batch.run import JobSummary, run_job
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.errors import OutputExistsError, UserError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.core.types import TOLERANCE
from eagleray.inference.predictor import Predictor
from eagleray.models.networks.features import features_of
from eagleray.models.package import write_package
from eagleray.sharded.attempts import ShardJournal
from eagleray.sharded.plan import new_id
from tests.support.job_folder import open_predict
from tests.support.models import small_package

pytestmark = pytest.mark.numerical

NUM_GOOD = 40


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(NUM_GOOD):
        pixels = generator.integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d} é%20.png")
    (folder / "100-text.png").write_text("no image")
    (folder / "101-gone.png").symlink_to("nowhere")
    (folder / "102-empty.png").touch()
    os.mkfifo(folder / "103-pipe.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    write_package(small_package(name="digits"), str(folder))
    return str(folder)


def predict(cluster: Cluster, request: PredictSpec) -> JobSummary:
    quiet = Console(json_output=True)
    return run_job(open_predict(request, Settings(), quiet), lambda: cluster, quiet)


def build(request: PredictSpec) -> Job:
    return open_predict(request, Settings(), Console(json_output=True))


def test_every_image_is_accounted_for(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    request = PredictSpec(inputs=(str(images),), model=model, output=str(tmp_path / "out"))
    summary = predict(cluster, request)
    assert (summary.totals.num_rows, summary.totals.num_ok) == (NUM_GOOD + 4, NUM_GOOD)
    assert summary.reasons == {"missing": 1, "not_an_image": 1, "truncated": 1, "unreadable": 1}
    assert summary.first_result_seconds is not None
    assert 0 < summary.first_result_seconds <= summary.seconds

    table = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert [row["row"] for row in table] == list(range(NUM_GOOD + 4))
    by_name = {Path(row["uri"]).name: row for row in table}
    assert by_name["100-text.png"]["reason"] == "not_an_image"
    assert by_name["101-gone.png"]["reason"] == "missing"
    assert by_name["102-empty.png"]["reason"] == "truncated"
    assert by_name["103-pipe.png"]["reason"] == "unreadable"
    page = Path(summary.report).read_text()
    assert "40 ok + 4 failed\n= 44 inputs" in page


def test_batch_predictions_equal_the_predictors_own(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    request = PredictSpec(
        inputs=(str(images),),
        model=model,
        output=str(tmp_path / "out"),
        top_k=3,
        precision="float32",
    )
    predict(cluster, request)
    predictor = Predictor(
        small_package(name="digits"), engine="eager", precision="float32", num_threads=1
    )
    rows = [r for r in pyarrow.parquet.read_table(tmp_path / "out").to_pylist() if r["label"]]
    outcomes = predictor.predict([Path(row["uri"]).read_bytes() for row in rows])
    for row, outcome in zip(rows, outcomes, strict=True):
        assert outcome.prediction is not None
        assert row["label"] == outcome.prediction.label
        assert row["score"] == pytest.approx(outcome.prediction.score, abs=TOLERANCE["float32"])
        assert row["contract_digest"] == predictor.package.contract.digest


@pytest.mark.parametrize("output_format", ["csv", "jsonl"])
def test_text_formats_hold_the_same_rows(
    cluster: Cluster, tmp_path: Path, images: Path, model: str, output_format: str
) -> None:
    request = PredictSpec(
        inputs=(str(images),),
        model=model,
        output=str(tmp_path / "out"),
        format=output_format,
    )
    part = predict(cluster, request).files[0]
    if output_format == "csv":
        table = pyarrow.csv.read_csv(part)
        assert len(json.loads(table.column("top_k")[0].as_py())) == 3
    else:
        table = pyarrow.json.read_json(part)
    assert table.column("row").to_pylist() == list(range(NUM_GOOD + 4))
    assert table.column("status").to_pylist().count("ok") == NUM_GOOD


@pytest.mark.parametrize("output_format", ["parquet", "csv", "jsonl"])
def test_a_job_writes_the_features_of_a_model(
    cluster: Cluster, tmp_path: Path, images: Path, model: str, output_format: str
) -> None:
    request = PredictSpec(
        inputs=(str(images),),
        model=f"features:{model}",
        output=str(tmp_path / "out"),
        format=output_format,
        precision="float32",
    )
    part = predict(cluster, request).files[0]
    if output_format == "parquet":
        table = pyarrow.parquet.read_table(part)
        assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32())
    else:
        reader = pyarrow.csv.read_csv if output_format == "csv" else pyarrow.json.read_json
        table = reader(part)
    rows = table.to_pylist()
    good = [row for row in rows if row["status"] == "ok"]
    assert (len(rows), len(good)) == (NUM_GOOD + 4, NUM_GOOD)
    predictor = Predictor(
        features_of(small_package(name="digits")), engine="eager", precision="float32"
    )
    outcomes = predictor.predict([Path(row["uri"]).read_bytes() for row in good])
    for row, outcome in zip(good, outcomes, strict=True):
        assert outcome.prediction is not None
        found = row["embedding"]
        vector = json.loads(found) if isinstance(found, str) else found
        expected = predictor.task.outputs_of(outcome.prediction)
        assert vector == pytest.approx(expected.tolist(), abs=TOLERANCE["float32"])
        assert row["model"] == "digits-features"


def test_a_csv_of_paths_may_name_what_is_not_there(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    table = tmp_path / "list.csv"
    names = ["images/000 é%20.png"] * 2 + ["images/never.png", "images"]
    names += ["http://127.0.0.1:1/a.png", "nonsense://a.png", "s3://no-such-bucket/a.png"]
    table.write_text("\n".join(["path", *names]) + "\n")
    summary = predict(
        cluster, PredictSpec(inputs=(str(table),), model=model, output=str(tmp_path / "out"))
    )
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert [row["reason"] for row in rows] == [
        *(None, None, "missing", "missing"),
        *("unreadable", "unreadable", "missing"),
    ]
    assert "--allow-urls" in rows[4]["message"]
    assert rows[0]["label"] == rows[1]["label"]
    assert summary.totals.num_failed == 5


def test_a_link_that_was_put_after_the_listing_is_not_followed(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    outside = tmp_path / "outside.png"
    job = build(
        PredictSpec(
            inputs=(str(images),),
            model=model,
            output=str(tmp_path / "out"),
            allow_path=(str(images),),
        )
    )
    first = job.manifest.shard(0).column("uri")[0].as_py()
    Path(first).rename(outside)
    Path(first).symlink_to(outside)
    run_job(job, lambda: cluster, Console(json_output=True))
    row = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()[0]
    assert (row["reason"], row["message"]) == ("unreadable", "this job may not read that location")


def test_images_model_and_results_may_live_on_s3(cluster: Cluster, s3: str) -> None:
    import s3fs

    filesystem = s3fs.S3FileSystem()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    names = ["0.png", "deep/1 é%20#?.png", "deep/er/2.png"]
    for name in names:
        filesystem.pipe_file(f"{s3}/images/{name}", buffer.getvalue())
    filesystem.pipe_file(f"{s3}/images/3.png", b"")
    write_package(small_package(name="digits"), f"{s3}/models/digits")

    request = PredictSpec(
        inputs=(f"{s3}/images/",), model=f"{s3}/models/digits", output=f"{s3}/results"
    )
    summary = predict(cluster, request)
    assert (summary.totals.num_ok, summary.reasons) == (3, {"truncated": 1})
    table = pyarrow.parquet.read_table(f"{s3}/results/part-00000.parquet", filesystem=filesystem)
    assert table.column("uri").to_pylist() == [
        f"{s3}/images/{name}" for name in ["0.png", "3.png", *names[1:]]
    ]
    assert filesystem.exists(f"{s3}/results/_SUCCESS")
    assert not filesystem.exists(f"{s3}/results/_eagleray/shards")
    assert build(request).committed is not None
    with pytest.raises(OutputExistsError, match="top_k is 5 there and 1 here"):
        build(request.model_copy(update={"top_k": 1}))
    missing = PredictSpec(
        inputs=(f"{s3}/nowhere/",), model=f"{s3}/models/digits", output=f"{s3}/other"
    )
    with pytest.raises(UserError, match="There is no folder or file"):
        build(missing)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inputs": ("nowhere",)}, "There is no folder or file nowhere"),
        ({"model": "nothing@production"}, "No registered model is named 'nothing'"),
        ({"model": "random:resnet81"}, "Nearest: resnet18"),
        ({"top_k": 0}, "top_k must be greater than or equal to 1"),
        ({"column": "x"}, "column of"),
    ],
)
def test_mistakes_are_said_before_any_work(
    tmp_path: Path, images: Path, model: str, change: dict[str, object], sentence: str
) -> None:
    (tmp_path / "list.csv").write_text("path\na.png\n")
    inputs = str(tmp_path / "list.csv") if "column" in change else str(images)
    fine: dict[str, object] = {
        "inputs": (inputs,),
        "model": model,
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        build(PredictSpec.make({**fine, **change}))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_output_with_results_is_never_overwritten(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    request = PredictSpec(inputs=(str(images),), model=model, output=str(tmp_path / "out"))
    predict(cluster, request)
    before = (tmp_path / "out" / "part-00000.parquet").read_bytes()
    with pytest.raises(OutputExistsError, match="inputs is"):
        build(request.model_copy(update={"inputs": (str(images / "000 é%20.png"),)}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not a job's")
    with pytest.raises(OutputExistsError, match="is not empty"):
        build(request.model_copy(update={"output": str(tmp_path / "mine")}))
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == before


def test_more_workers_than_cores_can_wait_for_nothing(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    """All workers run beside the tasks that feed them, also when they hold every core."""
    import ray

    assert ray.available_resources().get("CPU", 0) >= 1
    request = PredictSpec(inputs=(str(images),) * 10, model=model, output=str(tmp_path / "out"))
    assert predict(cluster, request).totals.num_rows == 10 * (NUM_GOOD + 4)


@pytest.mark.parametrize("num_decoders", [0, 2])
def test_ray_data_takes_whole_shards_on_gpus(cluster: Cluster, num_decoders: int) -> None:
    worker_pool = WorkerPool(
        num_workers=1,
        max_workers=1,
        per_process=1,
        num_decoders=num_decoders,
        threads=1,
        per_node=1,
        uses_gpu=True,
    )
    journal = ShardJournal(new_id())
    shard_dataset([0, 1], None, journal, worker_pool, num_shards=2)  # lazy: there may be no GPU
