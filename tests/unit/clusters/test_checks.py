"""Planted faults: each check finds its own and names what mends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eagleray.clusters import checks
from eagleray.clusters.checks import CheckContext, Finding, check_clock, check_node, probing
from eagleray.core.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def context(settings: Settings) -> CheckContext:
    with probing(settings, None, shared=False) as (context, _):
        return replace(context, probes={})


def fault(findings: list[Finding], check: str) -> str:
    """Return the fault of a check; no other check has one."""
    assert [each.check for each in findings if each.fault] == [check]
    (found,) = [each.fault for each in findings if each.check == check]
    return found


def test_a_healthy_machine_has_no_fault_and_keeps_no_probe(
    settings: Settings, tmp_path: Path
) -> None:
    with probing(settings, str(tmp_path / "out"), shared=False) as (context, findings):
        found = [*findings, *check_node(context, settings, "here")]
        assert [each for each in found if each.fault] == []
        assert {each.check for each in found} >= {
            *("write EAGLERAY_RUNS_ROOT", "read EAGLERAY_RUNS_ROOT", "read --output", "registry"),
        }
    assert list((tmp_path / "out").iterdir()) == []


def test_other_versions(context: CheckContext, settings: Settings) -> None:
    other = replace(context, versions={**context.versions, "torch": "1.0"})
    assert "and not 1.0; install the driver's environment" in fault(
        check_node(other, settings, "far"), "versions"
    )


@pytest.mark.parametrize("setting", ["runs_root", "database_url", "artifact_root"])
def test_other_settings(context: CheckContext, settings: Settings, setting: str) -> None:
    value = "sqlite:///other.db" if setting == "database_url" else "/elsewhere"
    other = settings.model_copy(update={setting: value})
    found = checks._attempt("far", "settings", lambda: checks._check_places(context, other))
    name = f"EAGLERAY_{setting.upper()}"
    assert found.fault == f"{name} differs from the driver's; set the same value."


def test_files_of_one_machine_on_a_cluster(
    context: CheckContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    found = check_node(replace(context, shared=True), settings, "far")
    faults = {each.check: each.fault for each in found if each.fault}
    assert faults.keys() == {"registry", "database"}
    assert "set EAGLERAY_TRACKING_URI to an MLflow server" in faults["registry"]
    assert "set EAGLERAY_DATABASE_URL to a PostgreSQL" in faults["database"]


def test_storage_of_one_machine_on_a_cluster(settings: Settings) -> None:
    with probing(settings, "results", shared=True) as (_, findings):
        assert [each.check for each in findings if each.fault] == [
            *("write EAGLERAY_ARTIFACT_ROOT", "write EAGLERAY_RUNS_ROOT", "write --output"),
        ]
        assert all("is on the disk of one machine" in each.fault for each in findings)


def test_storage_that_cannot_be_written(settings: Settings) -> None:
    with probing(settings, "/proc/results", shared=False) as (_, findings):
        (found,) = [each.fault for each in findings if each.fault]
    assert found.startswith("/proc/results/.doctor-")
    assert "cannot be written (No such file or directory); see the folder and" in found


def test_a_folder_that_is_another_one_there(settings: Settings, tmp_path: Path) -> None:
    with probing(settings, str(tmp_path / "out"), shared=False) as (context, _):
        Path(context.probes["--output"]).unlink()
        found = fault(check_node(context, settings, "far"), "read --output")
    assert "the folder is another one on this node" in found


def test_a_registry_that_does_not_answer(context: CheckContext, settings: Settings) -> None:
    gone = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    same = replace(context, places=checks._places(gone))
    assert "127.0.0.1:9" in fault(check_node(same, gone, "far"), "registry")


def test_a_cluster_without_a_token(
    context: CheckContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    found = check_node(replace(context, shared=True), settings, "far")
    (token,) = [each.fault for each in found if each.check == "token"]
    assert "set RAY_AUTH_MODE=token" in token


def test_gpus_that_are_not_there_or_not_offered(
    context: CheckContext, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_DEVICES", tmp_path)
    assert "Ray offers 2 GPUs and this machine has 0" in fault(
        check_node(context, settings, "far", num_gpus=2), "gpus"
    )
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert "start Ray with --num-gpus 1" in fault(
        check_node(context, settings, "far", num_gpus=0), "gpus"
    )


def test_a_full_disk(
    context: CheckContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_MIN_FREE_BYTES", 2**62)
    assert "set EAGLERAY_HOME to another disk" in fault(
        check_node(context, settings, "far"), "home"
    )


def test_a_module_that_cannot_be_imported(
    context: CheckContext, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eagleray.core import extensions

    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "no_such_module_there")
    monkeypatch.setattr(extensions, "_failures", [])
    monkeypatch.setattr(extensions, "_loaded", set(extensions._loaded))
    assert "EAGLERAY_EXTENSIONS" in fault(check_node(context, settings, "far"), "extensions")


def test_a_clock_that_is_wrong() -> None:
    assert check_clock("far", before=100, there=101, after=130).fault == ""
    assert "differs by at least 70 s" in check_clock("far", before=100, there=30, after=130).fault
    assert "differs by at least 20 s" in check_clock("far", before=100, there=150, after=130).fault
