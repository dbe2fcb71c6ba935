"""Hostile packages are refused in one sentence, quickly and within memory; valid ones load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from eagleray.cli import main as cli
from eagleray.core.errors import ExitCode, InputError, PackageError
from eagleray.core.limits import MAX_LABELS
from eagleray.evaluation.record import EvaluationRecord
from eagleray.imaging import named_contract
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.models.package import Lineage, read_package, write_package
from eagleray.registry.registry import Registry
from eagleray.tasks import Regression, make_task
from eagleray.training.loop.checkpoint import Checkpoint, CheckpointStore, Progress
from tests.support.hostile_packages import HOSTILE, Attempt, Hostile, set_tolerance
from tests.support.memory import CAN_TELL
from tests.support.models import lenet, lenet_module, registry_in, small_package

ROOT = Path(__file__).parents[3]
MAX_SECONDS = 2.0
MAX_MEGABYTES = 200.0


# --- what hostile packages cost ---------------------------------------------------------------


@pytest.mark.skipif(not CAN_TELL, reason="Linux tells how much memory a process has held")
@pytest.mark.timeout(600)
def test_hostile_packages_are_refused_within_two_seconds_and_200_megabytes() -> None:
    """All in one process without threads, which forks for each: its start is the costly part."""
    command = [sys.executable, "-m", "tests.bench.hostile_packages", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    attempts = {name: Attempt(**made) for name, made in json.loads(done.stdout).items()}
    assert attempts.keys() == {hostile.name for hostile in HOSTILE}
    assert [made for one in HOSTILE if not is_refused(one, made := attempts[one.name])] == []


def is_refused(hostile: Hostile, made: Attempt) -> bool:
    """Whether a package was refused for its fault, in a sentence that can be shown, cheaply."""
    return (
        made.ended == "refused"
        and hostile.sentence in made.refusal
        and made.refusal.isprintable()
        and len(made.refusal) < 1000
        and made.cpu_seconds <= MAX_SECONDS
        and made.megabytes <= MAX_MEGABYTES
    )


# --- honest packages --------------------------------------------------------------------------


def test_a_package_in_a_linked_folder_loads(tmp_path: Path) -> None:
    package = small_package()
    write_package(package, str(tmp_path / "real"))
    (tmp_path / "link").symlink_to("real")
    assert read_package(str(tmp_path / "link")).digest == package.digest


def test_a_package_at_the_limits_is_written_and_read(tmp_path: Path) -> None:
    task = make_task("multiclass", [f"label {number:07d}" for number in range(MAX_LABELS)])
    package = small_package(
        task=task,
        architecture=lenet(MAX_LABELS),
        module=lenet_module(MAX_LABELS),
        hierarchy={f"label {number:07d}": "above" for number in range(MAX_LABELS)},
    )
    write_package(package, str(tmp_path / "large"))
    assert read_package(str(tmp_path / "large")).digest == package.digest


def test_labels_that_no_package_can_hold_are_refused_before_training() -> None:
    with pytest.raises(InputError, match="250,001 labels, 250,000 is the limit"):
        make_task("multiclass", [str(number) for number in range(MAX_LABELS + 1)])
    with pytest.raises(InputError, match="has 1,001 characters, 1,000 is the limit"):
        make_task("multiclass", ["a", "b" * 1001])


def test_a_tolerance_is_in_the_unit_of_the_task(tmp_path: Path) -> None:
    task = Regression(mean=5.0, std=100.0)
    package = small_package(task=task, architecture=lenet(1), module=lenet_module(1))
    assert package.golden.tolerance == pytest.approx(3.0)
    write_package(package, str(tmp_path / "a"))
    assert read_package(str(tmp_path / "a")).digest == package.digest
    set_tolerance(3.1)(tmp_path / "a")
    with pytest.raises(PackageError, match=r"tolerance of 3\.1"):
        read_package(str(tmp_path / "a"))


def test_float32_is_held_to_a_smaller_difference_than_bfloat16() -> None:
    package = small_package()
    for precision, tolerance in (("float32", 0.01), ("bfloat16", 0.03)):
        predictor = Predictor(
            package,
            device="cpu",
            precision=precision,  # type: ignore[arg-type]
            engine="eager",
        )
        assert predictor.check_golden().tolerance == pytest.approx(tolerance)


@pytest.mark.parametrize("side", [224, 600, 1024, 4096])
def test_contracts_of_sizes_in_use_are_taken(side: int) -> None:
    assert named_contract("whole-image", size=side).size == (side, side)


# --- what else is read ------------------------------------------------------------------------


def test_an_evaluation_that_is_a_link_or_too_large_is_refused(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    version = registry.register(small_package())
    record = EvaluationRecord(
        data="d",
        data_digest="0" * 64,
        package_digest=version.digest,
        num_images=1,
        num_failed=0,
        metrics={"accuracy": 1.0},
    )
    registry.record_evaluation(version, record)
    assert registry.evaluations(version) == [record]
    (file,) = tmp_path.rglob(f"*-{version.digest}.json")
    with file.open("wb") as opened:
        opened.truncate(2**36)
    with pytest.raises(InputError, match="68,719,476,736 bytes"):
        registry.evaluations(version)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a link"):
        registry.evaluations(version)


def test_a_registered_package_that_became_a_link_is_refused(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    version = registry.register(small_package())
    (file,) = tmp_path.rglob("golden/00.png")
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(PackageError, match=r"'00\.png' is a link"):
        registry.load(version)


@pytest.mark.timeout(60)
def test_a_checkpoint_that_is_a_link_or_claims_too_much_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.put(Checkpoint(Progress(total_steps=1), {"model/w": torch.zeros(4)}), keep=1)
    (name,) = store.names()
    file = tmp_path / name
    good = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(2**36)
    with pytest.raises(InputError, match=r"damaged \(it has 68,719,476,736 bytes"):
        store.read(name)
    file.write_bytes(b"\xff" * 7 + b"\x00" + good[8:])
    with pytest.raises(InputError, match=r"damaged \(its header claims"):
        store.progress()
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a link"):
        store.read(name)


def test_a_package_under_a_uri_is_read_within_the_same_limits() -> None:
    import fsspec

    write_package(small_package(), "memory://hostile/digits")
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/hostile/digits/model.json", b" " * (16 * 2**20 + 1))
    with pytest.raises(PackageError, match="16,777,217 bytes, 16,777,216 is the limit"):
        read_package("memory://hostile/digits")


# --- models verify ----------------------------------------------------------------------------


def verified(folder: Path) -> dict[str, tuple[bool | None, str]]:
    return {
        check.name: (check.passed, check.detail) for check in verify_package(str(folder)).checks
    }


def run_verify(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["models", "verify", *words])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    write_package(small_package(), str(tmp_path / "digits"))
    return tmp_path / "digits"


def test_every_check_of_a_good_package_passes(folder: Path) -> None:
    result = run_verify(str(folder), "--json")
    assert result.exit_code == 0
    told = json.loads(result.output)
    assert told["passed"]
    assert told["digest"] == small_package().digest
    assert [check["check"] for check in told["checks"]] == [
        "model.json",
        "files",
        "listed files",
        "golden.json",
        "golden/00.png",
        "golden/01.png",
        "golden/02.png",
        "golden images",
        "network",
        "model.safetensors",
        "input size",
        "outputs",
    ]
    assert all(check["passed"] for check in told["checks"])
    assert run_verify(str(folder)).exit_code == 0


def test_every_fault_is_reported_not_only_the_first(folder: Path) -> None:
    (folder / "golden/00.png").write_bytes(b"other")
    (folder / "golden/01.png").unlink()
    (folder / "notes.txt").touch()
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(lenet_module(4).state_dict()))
    checks = verified(folder)
    failed = {name: detail for name, (passed, detail) in checks.items() if passed is False}
    assert set(failed) == {"listed files", "golden/00.png", "golden/01.png", "network"}
    assert "notes.txt" in failed["listed files"]
    assert "SHA-256 differs" in failed["golden/00.png"]
    assert "the shape 4 x 84" in failed["network"]
    assert checks["outputs"][0] is None
    result = run_verify(str(folder))
    assert result.exit_code == ExitCode.USER
    for detail in failed:
        assert detail in result.output
    assert "3 more" in result.output
    told = json.loads(run_verify(str(folder), "--json").stdout)
    assert not told["passed"]


def test_a_manifest_that_is_none_leaves_the_other_checks_out(folder: Path) -> None:
    (folder / "model.json").write_text("{")
    checks = verified(folder)
    assert checks["model.json"][0] is False
    assert checks["outputs"] == (None, "not checked, as it needs a valid model.json")


def test_outputs_that_differ_are_a_fault(folder: Path) -> None:
    from tests.support.hostile_packages import golden

    golden(lambda fields: fields["images"][0].update(outputs=[1.0, 0.0, 0.0]))(folder)
    assert verified(folder)["outputs"][0] is False


@pytest.mark.parametrize("hostile", [pytest.param(one, id=one.name) for one in HOSTILE[:20]])
def test_hostile_packages_are_reported_by_verify(folder: Path, hostile: Hostile) -> None:
    hostile.make(folder)
    assert not verify_package(str(folder)).passed


def test_versions_of_the_registry_are_compared_with_what_was_registered(folder: Path) -> None:
    version = Registry().register(small_package())
    assert run_verify("digits/1").exit_code == 0
    file = next(folder.parent.joinpath("home").rglob("model.json"))
    fields = json.loads(file.read_text())
    fields["lineage"] = json.loads(Lineage.now(note="another").model_dump_json())
    file.write_text(json.dumps(fields))
    told = json.loads(run_verify("digits/1", "--json").stdout)
    (fault,) = [check for check in told["checks"] if check["passed"] is False]
    assert fault["check"] == "digest"
    assert version.digest[:12] in fault["detail"]
