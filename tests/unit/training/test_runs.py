"""The folder of a run: what it keeps, and runs of other versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.training.job import open_run
from eagleray.training.loop.checkpoint import Progress
from eagleray.training.prepare import open_job, reopen_job
from eagleray.training.runs import RunRecord, create_run, find_run
from tests.support.training import small_spec, write_stripes


def test_a_run_is_found_by_its_name(tmp_path: Path) -> None:
    settings, spec = Settings(home=tmp_path), small_spec("data", epochs=7)
    run = create_run(settings, spec)
    record = RunRecord(run=run.name, data_digest="0" * 64, alias="candidate")
    run.write(record)
    found = find_run(settings, run.name)
    assert (found.read_spec(), found.read()) == (spec, record)
    with pytest.raises(UnknownNameError, match=f"Nearest: {run.name}"):
        find_run(settings, f"{run.name}0")


def test_a_run_of_another_version_is_refused_with_its_fields(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    run = create_run(settings, small_spec("data"))
    record = RunRecord(run=run.name, data_digest="0" * 64, alias="candidate")
    run.write(record)
    file = Path(run.spec_file)
    text = file.read_text().replace("max_grad_norm:", "clip_norm:").replace("strategy: ddp", "")
    file.write_text(f"{text}\nsharding: replicated\n")
    sentence = r"^Run \S+ cannot be resumed: .* \(clip_norm, sharding\); begin a new run\.$"
    with pytest.raises(InputError, match=sentence):
        reopen_job(run.name, settings)


def test_a_checkpoint_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    run = create_run(settings, small_spec("data"))
    run.write(RunRecord(run=run.name, data_digest="0" * 64, alias="candidate"))
    metadata = {"format": "1", "progress": Progress(epoch=1).to_json()}
    content = safetensors.torch.save({"losses": torch.ones(2)}, metadata)
    storage.put_atomic(storage.join(run.checkpoints, "step-000000002.safetensors"), content)
    with pytest.raises(
        InputError, match=r"^\S+ \S+ was written by another version .*--from RUN`\.$"
    ):
        reopen_job(run.name, settings)


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    run = create_run(Settings(home=tmp_path), small_spec("data"))
    with pytest.raises(InputError, match="is damaged; begin a new run"):
        run.read()


def test_a_run_keeps_its_s3_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_S3_ENDPOINT", "http://minio:9000")
    settings = Settings(home=tmp_path / "home")
    spec = small_spec(write_stripes(tmp_path / "stripes"), s3_region="eu-north-1")
    job = open_job(spec, settings, alias="candidate")
    run, _ = open_run(job)
    for found in (job.s3, reopen_job(run.name, settings).s3):
        assert (found.endpoint, found.region) == ("http://minio:9000", "eu-north-1")
    assert "s3_region: eu-north-1  # Region of the buckets." in Path(run.spec_file).read_text()
