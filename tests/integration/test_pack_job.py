"""The pack job on a real Ray: from the command line to files that jobs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
import typer
from typer.testing import CliRunner

from eagleray.batch.run import run_job
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.errors import ExitCode
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.jobs import pack
from eagleray.models.package import write_package
from eagleray.packing.job import open_pack
from eagleray.packing.spec import PackSpec
from eagleray.packing.worker import pack_shard
from eagleray.sources import InputSpec, open_inputs
from tests.support.images import encode
from tests.support.job_folder import open_predict
from tests.support.models import small_package

NUM_IMAGES = 300
QUIET = Console(json_output=True)


def run(*words: str, expect: int = ExitCode.OK) -> str:
    """Run the command in this process, on the Ray that is there."""
    app = typer.Typer()
    app.command()(pack.main)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == expect, result.output
    return result.output if expect else result.stdout


def summary_of(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*words, "--json"))
    return answer


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images of 5 to 10 kB, a link to nothing, and what is no image."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        pixels = generator.integers(0, 256, (64, 40 + index % 40), dtype=np.uint8)
        (folder / f"{index:04d} é.png").write_bytes(encode(pixels, "png"))
    (folder / "8-gone.png").symlink_to("nowhere")
    (folder / "9-text.png").write_text("no image")
    return folder


@pytest.mark.parametrize("file_format", ["parquet", "webdataset"])
def test_what_is_packed_is_predicted_like_the_files(
    cluster: Cluster, tmp_path: Path, images: Path, file_format: str
) -> None:
    out = str(tmp_path / "packed")
    words = [str(images), "--output", out, "--format", file_format, "--file-size", "1MB"]
    summary = summary_of(*words)
    assert (summary["images"], summary["packed"], summary["failed"]) == (302, 301, 1)
    assert summary["reasons"] == {"missing": 1}
    assert len(summary["files"]) > 1
    assert summary["megabytes_per_second"] > 0
    assert summary_of(*words)["committed_here"] is False

    write_package(small_package(name="digits"), str(tmp_path / "model"))
    request = PredictSpec(
        inputs=(out,), model=str(tmp_path / "model"), output=str(tmp_path / "results")
    )
    predicted = run_job(open_predict(request, Settings(), QUIET), lambda: cluster, QUIET)
    assert (predicted.totals.num_rows, predicted.totals.num_ok) == (301, 300)
    assert predicted.reasons == {"not_an_image": 1}
    if file_format == "parquet":
        rows = pq.read_table(tmp_path / "results").to_pylist()
        assert rows[7]["input_uri"] == f"{images}/0007 é.png"


def test_images_and_files_may_live_on_s3(cluster: Cluster, s3: str, images: Path) -> None:
    filesystem = s3fs.S3FileSystem()
    names = [f"{index:04d} é.png" for index in range(40)]
    for name in names:
        filesystem.pipe_file(f"{s3}/pack/in/{name}", (images / name).read_bytes())
    words = ["--file-size", "1MB", "--s3-region", "us-east-1"]
    first = summary_of(f"{s3}/pack/in/", "--output", f"{s3}/pack/first", *words)
    table = pq.read_table(first["files"][0], filesystem=filesystem)
    assert table.column("uri").to_pylist() == [f"{s3}/pack/in/{name}" for name in names]
    again = [f"{s3}/pack/first", "--output", f"{s3}/pack/again", "--format", "webdataset", *words]
    second = summary_of(*again)
    assert (second["packed"], second["failed"]) == (40, 0)
    listed = [
        storage.read_range(row["container"], row["offset"], row["size"])
        for rows in open_inputs(InputSpec((f"{s3}/pack/again",))).tables
        for row in rows.to_pylist()
    ]
    assert listed == [(images / name).read_bytes() for name in names]
    assert not filesystem.exists(f"{s3}/pack/again/_eagleray/shards")


def test_what_a_worker_cannot_fix_is_one_sentence(
    cluster: Cluster, tmp_path: Path, images: Path
) -> None:
    request = PackSpec(inputs=(str(images),), output=str(tmp_path / "out"), file_size="1MB")
    job = open_pack(request, Settings(), QUIET)
    pack_shard(job.context, 0)
    Path(job.layout.shard(0)).unlink()
    (tmp_path / "out" / "part-00000.parquet").write_text("something else")
    words = [str(images), "--output", str(tmp_path / "out"), "--file-size", "1MB"]
    said = run(*words, expect=ExitCode.JOB_FAILED)
    assert "was left there by a run that was stopped" in " ".join(said.split())
    assert "Traceback" not in said
    (tmp_path / "out" / "part-00000.parquet").unlink()
    assert summary_of(*words)["packed"] == 301


def test_people_read_totals_and_where_the_failures_are(
    cluster: Cluster, tmp_path: Path, images: Path
) -> None:
    said = run(str(images), "--output", str(tmp_path / "out"), "--max-failures", "1")
    assert "failed: missing" in said
    assert "MB/s" in said
    assert f"in 1 file: {tmp_path}/out" in said
    assert f"failures: {tmp_path}/out/_failures.parquet" in said
    wrong = run(str(images), "--output", "x", "--file-size", "1kB", expect=ExitCode.USER)
    assert "--file-size: write a size such as 256MB" in wrong
