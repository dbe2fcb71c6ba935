"""A folder in which a whole prediction job runs without Ray and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagleray.batch.job import Job, open_job
from eagleray.batch.run import JobSummary, run_job
from eagleray.batch.shard_summary import ShardSummary, decode_shard
from eagleray.batch.spec import PredictSpec
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.models.package import write_package
from eagleray.registry.references import load_model
from eagleray.sharded.attempts import Shards
from tests.support.batch import Output
from tests.support.images import encode, photo
from tests.support.models import settings_in, small_package
from tests.support.reporting import RecordingReporter


class JobFolder:
    """A folder with a model, images, and an output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = settings_in(folder)
        self.reporter = RecordingReporter()
        write_package(small_package(), str(folder / "model"))
        self.add_images("a b.png", "ü%20.png", *(f"{number:03d}.png" for number in range(38)))

    def add_images(self, *names: str) -> None:
        (self.folder / "images").mkdir(exist_ok=True)
        for name in names:
            (self.folder / "images" / name).write_bytes(encode(photo(8, 8)))

    def request(self, **overrides: Any) -> PredictSpec:
        parts: dict[str, Any] = {
            "inputs": (str(self.folder / "images"),),
            "model": str(self.folder / "model"),
            "output": str(self.folder / "out"),
        }
        return PredictSpec(**{**parts, **overrides})

    def open(self, **overrides: Any) -> Job:
        return open_predict(self.request(**overrides), self.settings, self.reporter)

    def run_with(self, job: Job, *failed: int) -> JobSummary:
        """Run a job whose workers answer without any model, shard after shard."""
        made = Output(job.layout, job.plan, job.model, failed)

        def work(pending: Shards, *_: object, **__: object) -> Iterator[ShardSummary]:
            for shard in pending.tolist():
                made.put_shards([shard])
                yield decode_shard(storage.read_bytes(job.layout.shard(shard)))[1]

        cluster = Cluster(2, 0, embedded=True)
        return run_job(job, lambda: cluster, self.reporter, run_shards=work)

    def worked(self, *failed: int, **overrides: Any) -> Job:
        """Open a job and do what its workers would do."""
        job = self.open(**overrides)
        Output(job.layout, job.plan, job.model, failed).put_shards()
        return job

    def run(self, job: Job) -> JobSummary:
        return run_job(job, no_cluster, self.reporter)


def no_cluster() -> Cluster:
    raise AssertionError("every shard has its result")


def open_predict(
    request: PredictSpec,
    settings: Settings,
    reporter: ProgressReporter,
    *,
    rows_per_file: int | None = None,
) -> Job:
    """Load the model of a request and open its job, as `eagleray predict` does."""
    storage.use_s3(request.s3)
    model = load_model(request.model, settings)
    return open_job(request, model, settings, reporter, rows_per_file=rows_per_file)
