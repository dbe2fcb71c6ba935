"""What an analyst does with a batch job besides running it once, on a real Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eagleray import read_results
from eagleray.batch.quote import quote_job
from eagleray.batch.run import JobSummary, finish_job, run_job
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.errors import InputError, JobFailedError, OutputExistsError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import read_settings
from eagleray.io import storage
from eagleray.models.package import write_package
from eagleray.sharded.history import cancel_job, find_job, list_jobs
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import read_progress
from tests.support.job_folder import open_predict
from tests.support.models import small_package

QUIET = Console(json_output=True)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    write_package(small_package(name="digits"), str(folder))
    return str(folder)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 60)


def write_images(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    return folder


def run(cluster: Cluster, request: PredictSpec) -> JobSummary:
    return run_job(open_predict(request, read_settings(), QUIET), lambda: cluster, QUIET)


def rows_of(output: Path | str) -> list[dict[str, object]]:
    return [row for table in read_results(str(output)) for row in table.to_pylist()]


def no_cluster() -> Cluster:
    raise AssertionError("there is nothing to work on, so no cluster should be asked for")


def test_a_stopped_job_resumes_and_repeats_no_finished_work(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    for index in range(20):
        (images / f"{index:04d}-broken.png").write_text("no image")
    request = PredictSpec(inputs=(str(images),), model=model, output=str(tmp_path / "out"))
    strict = request.model_copy(update={"max_failures": "10%"})
    with pytest.raises(JobFailedError, match="more than --max-failures allows"):
        run(cluster, strict)
    layout = OutputLayout(request.output)
    done = {number: storage.read_bytes(layout.shard(number)) for number in layout.finished_shards()}
    assert done
    with pytest.raises(InputError, match="not the finished output"):
        rows_of(request.output)
    stopped = read_progress(layout)
    assert stopped is not None
    assert stopped.state == "failed"
    assert 0 < stopped.num_done < stopped.num_rows

    summary = run(cluster, request)
    assert (summary.totals.num_ok, summary.reasons) == (60, {"not_an_image": 20})
    rows = rows_of(request.output)
    assert [row["row"] for row in rows] == list(range(80))
    first = pq.read_table(pa.BufferReader(done[min(done)])).to_pylist()
    assert first == [row for row in rows if row["row"] in {one["row"] for one in first}]
    assert list_jobs(read_settings())[0].state == "succeeded"

    again = open_predict(request, read_settings(), QUIET)
    assert again.committed is not None
    assert finish_job(again).totals == summary.totals
    other = request.model_copy(update={"top_k": 3})
    with pytest.raises(OutputExistsError, match="top_k is 5 there and 3 here"):
        open_predict(other, read_settings(), QUIET)


def test_only_what_failed_and_only_what_is_new(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    table = tmp_path / "list.csv"
    names = [f"images/{index:04d}.png" for index in range(6)] + ["images/later.png"]
    columns = {"photo": names, "label": [f"wish {i}" for i in range(7)], "lot": ["a"] * 7}
    pyarrow.csv.write_csv(pa.table(columns), table)
    first = PredictSpec(
        inputs=(str(table),), model=model, output=str(tmp_path / "first"), column="photo"
    )
    run(cluster, first)
    rows = rows_of(first.output)
    assert [row["input_label"] for row in rows] == columns["label"]
    assert rows[6]["reason"] == "missing"

    Image.new("L", (24, 24)).save(images / "later.png")
    retry = PredictSpec(
        inputs=(), model=model, output=str(tmp_path / "retry"), failed_only=first.output
    )
    run(cluster, retry)
    (row,) = rows_of(retry.output)
    assert (row["status"], row["input_label"], row["lot"]) == ("ok", "wish 6", "a")

    whole = PredictSpec(
        inputs=(str(images),), model=model, output=str(tmp_path / "whole"), since=(first.output,)
    )
    run(cluster, whole)
    seen = {Path(str(row["uri"])).name for row in rows_of(whole.output)}
    assert seen == {f"{index:04d}.png" for index in range(6, 60)} | {"later.png"}
    everything = whole.model_copy(
        update={"output": str(tmp_path / "nothing"), "since": (first.output, whole.output)}
    )
    with pytest.raises(InputError, match="No input is new or changed"):
        open_predict(everything, read_settings(), QUIET)


def test_results_go_into_a_database_once(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    request = PredictSpec(
        inputs=(str(images),),
        model=model,
        output=str(tmp_path / "out"),
        sql=f"sqlite:///{tmp_path}/results.db",
    )
    assert run(cluster, request).sql_rows == 60
    assert finish_job(open_predict(request, read_settings(), QUIET)).sql_rows == 60
    with contextlib.closing(sqlite3.connect(tmp_path / "results.db")) as database:
        stored = database.execute("SELECT row, label, top_k FROM predictions ORDER BY row")
        found = stored.fetchall()
    assert [(row, label) for row, label, _ in found] == [
        (row["row"], row["label"]) for row in rows_of(request.output)
    ]
    assert len(json.loads(found[0][2])) == 3


def test_decoding_apart_gives_the_same_table_on_one_core_and_on_two(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    (images / "broken.png").write_text("no image")
    fused = PredictSpec(
        inputs=(str(images),),
        model=model,
        output=str(tmp_path / "fused"),
        precision="float32",  # each way would choose its own, by measuring
        engine="eager",
    )
    apart = fused.model_copy(update={"output": str(tmp_path / "apart"), "separate_decoding": True})
    run(cluster, fused)
    run(dataclasses.replace(cluster, num_cpus=1), apart)
    assert without_times(fused.output) == without_times(apart.output)


def without_times(output: str) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k != "milliseconds"} for row in rows_of(output)]


def test_a_quote_says_what_fails_and_leaves_nothing_behind(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    (images / "broken.png").write_text("no image")
    request = PredictSpec(inputs=(str(images),), model=model, output=str(tmp_path / "out"))
    job = open_predict(request, read_settings(), QUIET)
    quote = quote_job(job, cluster, price_per_hour=3600)
    assert (quote.num_rows, quote.num_sampled) == (61, 61)
    assert quote.reasons == {"not_an_image": 1}
    assert quote.images_per_second == pytest.approx(61 / quote.seconds)
    assert quote.price == pytest.approx(quote.seconds)
    assert quote.output_bytes > 0
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "out" / "_eagleray").iterdir())
    assert left == ["manifest", "plan.json"]


def test_a_running_job_is_cancelled_from_elsewhere(
    cluster: Cluster, tmp_path: Path, model: str
) -> None:
    images = write_images(tmp_path / "many", 400)
    request = PredictSpec(
        inputs=(str(images),) * 12, model=model, output=str(tmp_path / "out"), engine="eager"
    )
    job = open_predict(request, read_settings(), QUIET)
    cancelled = threading.Event()

    class CancelsAtTheFirstResult(Console):
        @contextlib.contextmanager
        def progress(self, description: str, total: int) -> Iterator[CancelsAtTheFirstResult]:  # type: ignore[override]
            yield self

        def line(self, text: str) -> None:
            pass

        def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
            if count and not cancelled.is_set():
                cancelled.set()
                cancel_job(find_job(read_settings(), job.plan.job_id))

    with pytest.raises(JobFailedError, match="was cancelled after"):
        run_job(job, lambda: cluster, CancelsAtTheFirstResult(json_output=True))
    assert find_job(read_settings(), request.output).state == "cancelled"
    assert run(cluster, request).totals.num_ok == 4800


def test_addresses_are_fetched_from_hosts_that_are_named(
    cluster: Cluster, tmp_path: Path, images: Path, model: str
) -> None:
    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = images / self.path.lstrip("/")
            self.send_response(200 if file.is_file() else 404)
            self.end_headers()
            if file.is_file():
                self.wfile.write(file.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        table = tmp_path / "list.jsonl"
        addresses = [f"http://{host}/0001.png", f"http://{host}/never.png", "http://localhost/x"]
        table.write_text("".join(json.dumps({"url": url}) + "\n" for url in addresses))
        request = PredictSpec(
            inputs=(str(table),),
            model=model,
            output=str(tmp_path / "out"),
            allow_urls=(host,),
            private_networks=("127.0.0.0/8",),
        )
        run(cluster, request)
        server.shutdown()
    rows = rows_of(request.output)
    assert [row["reason"] for row in rows] == [None, "missing", "unreadable"]
    assert "--allow-urls" in str(rows[2]["message"])
