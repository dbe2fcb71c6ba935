"""Training whose worker or driver is killed: the result is the same."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from eagleray.cli.console import Console
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.registry.registry import Registry
from eagleray.training.job import run_job
from eagleray.training.prepare import open_job, reopen_job
from eagleray.training.runs import Run, RunRecord
from eagleray.training.spec import TrainSpec
from eagleray.training.summary import TrainSummary
from tests.support.numerics import SAME_LOSS
from tests.support.training import small_spec, write_stripes

pytestmark = pytest.mark.numerical

SECONDS = 120.0


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes", count=60)


def rich_spec(data: Path, **changes: object) -> TrainSpec:
    """Everything that can be random is, and a checkpoint follows every second step."""
    random = {
        "random_translation": 0.1,
        "horizontal_flip": True,
        "sampler": "balanced",
        "dropout": 0.2,
        "ema_decay": 0.9,
    }
    fields = {"epochs": 4, "checkpoint_steps": 2, "workers": 2, **random, **changes}
    return small_spec(data, **fields)


def train(cluster: Cluster, spec: TrainSpec) -> TrainSummary:
    job = open_job(spec, Settings(), alias="candidate")
    return run_job(job, cluster, Console(json_output=True))


def resume(cluster: Cluster, name: str) -> TrainSummary:
    return run_job(reopen_job(name, Settings()), cluster, Console(json_output=True))


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, stripes: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainSummary:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EAGLERAY_HOME", str(tmp_path_factory.mktemp("undisturbed")))
        return train(cluster, rich_spec(stripes))


def assert_alike(found: TrainSummary, expected: TrainSummary) -> None:
    assert found.result.losses == pytest.approx(expected.result.losses, rel=SAME_LOSS)
    for one, other in zip(found.result.epochs, expected.result.epochs, strict=True):
        names = [name for name in one if name.startswith(("train_", "validation_"))]
        assert [one[name] for name in names] == pytest.approx(
            [other[name] for name in names], rel=SAME_LOSS
        )
    metrics = expected.tested.evaluation.metrics
    assert found.tested.evaluation.metrics == pytest.approx(metrics, rel=SAME_LOSS)


def assert_one_version(found: TrainSummary) -> None:
    """One is there, it loads, and MLflow was told of every epoch once."""
    registry = Registry()
    (version,) = registry.versions("stripes")
    assert version == found.version
    assert version.aliases == ("candidate",)
    assert registry.load(version).digest == version.digest
    assert len(registry.evaluations(version)) == 1
    history = registry.client.get_metric_history(version.run_id, "validation_loss")
    assert [item.step for item in history] == [1, 2, 3, 4]


def newest_step(home: Path) -> int:
    names = [file.stem for file in home.glob("runs/*/checkpoints/step-*.safetensors")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


def train_workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "ray::RayTrainWorker" in " ".join(process.cmdline())
    ]


@pytest.mark.long
def test_a_killed_worker_changes_no_result(
    cluster: Cluster, stripes: Path, undisturbed: TrainSummary
) -> None:
    home = Settings().home_folder
    killed: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: newest_step(home) >= 8)
        victim = train_workers()[0]
        victim.kill()
        killed.append(victim.pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    found = train(cluster, rich_spec(stripes))
    killer.join()
    assert len(killed) == 1
    assert_alike(found, undisturbed)
    assert_one_version(found)


@pytest.mark.long
def test_a_run_of_a_killed_driver_is_resumed(
    cluster: Cluster, stripes: Path, undisturbed: TrainSummary, tmp_path: Path
) -> None:
    import ray  # not before the fixture has said how it is guarded

    home = Settings().home_folder
    file = tmp_path / "spec.yaml"
    file.write_text(rich_spec(stripes).to_yaml())
    address = ray.get_runtime_context().gcs_address
    words = ["eagleray.jobs.train", "--spec", str(file), "--cluster", address]
    words += ["--alias", "candidate"]  # also if it should not have learned
    driver = subprocess.Popen([sys.executable, "-m", *words])
    wait_for(lambda: newest_step(home) >= 6)
    driver.kill()
    driver.wait()
    (folder,) = home.glob("runs/*")
    (folder / "checkpoints" / ".step-000000008.safetensors.0123456789ab.tmp").touch()
    found = resume(cluster, folder.name)
    assert_alike(found, undisturbed)
    assert_one_version(found)
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_run_killed_after_registration_registers_no_second_version(
    cluster: Cluster, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Run.write

    def write_or_die(kept: Run, record: RunRecord) -> None:
        if record.version is not None:
            raise KeyboardInterrupt
        write(kept, record)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            train(cluster, rich_spec(stripes, workers=1))
    (folder,) = Settings().home_folder.glob("runs/*")
    found = resume(cluster, folder.name)
    assert found.version.reference == "stripes/1"
    assert_one_version(found)
    assert [item.action for item in Registry().history.changes("stripes")] == ["register"]
