"""`eagleray models …` on versions: from promotion to deletion, comparison and lineage."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eagleray.cli.models import models_app
from eagleray.models.building import build
from eagleray.registry.registry import Registry
from eagleray.tasks import Binary
from tests.support.models import lenet, registry_in
from tests.support.registry import HARD, evaluated, keep_split, register


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for the module; tests keep apart by the names of their models."""
    return registry_in(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model's name that is this test's own."""
    return f"{request.node.originalname}-{secrets.token_hex(4)}"


@pytest.fixture
def home(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(registry.settings.home))
    monkeypatch.setenv("EAGLERAY_USER", "Ada")
    monkeypatch.setenv("COLUMNS", "200")


def run(*words: str, code: int = 0) -> str:
    """Return what is shown, on one line."""
    result = CliRunner().invoke(models_app, words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join((result.stdout if "--json" in words else result.output).split())


@pytest.mark.usefixtures("home")
def test_the_commands_from_promotion_to_deletion(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    first, second, _ = register(registry, name, 3)
    kpi = tmp_path / "kpi.txt"
    kpi.write_text("accuracy >= 0.9\n")
    evaluated(registry, first, 0.95)
    evaluated(registry, second, 0.5)
    said = run("promote", name, "1", "--kpi", str(kpi))
    assert said == (
        f"accuracy >= 0.9: passed with 0.95 {name}@production is now {name}/1, and was unset "
        "before (change 1)."
    )
    assert "failed with 0.5" in run("promote", name, "2", "--kpi", str(kpi), code=4)
    assert "name a file of KPIs with --kpi" in run("promote", name, "2", code=2)
    forced = json.loads(run("promote", name, "2", "--force", "--reason", "demo", "--json"))
    assert (forced["from"], forced["to"], forced["actor"]) == (1, 2, "Ada")
    assert f"is now {name}/1, after {name}/2" in run("rollback", name, "--reason", "slow")
    assert "has no version before" in run("rollback", name, code=2)
    assert "is now" in run("alias", name, "staging", "3", "--reason", "try it")

    shown = json.loads(run("history", name, "--alias", "production", "--json"))
    assert [(item["number"], item["action"], item["to"]) for item in shown] == [
        (1, "promote", 1),
        (2, "promote", 2),
        (3, "rollback", 1),
    ]
    table = run("history", name)
    assert "promote (forced)" in table
    assert "try it" in table
    registry.client.set_registered_model_alias(name, "staging", "2")
    assert f"{name}@staging points to {name}/2, the history says {name}/3" in run("history", name)

    assert f"{name}@staging points to {name}/2" in run("delete", name, "2", "--yes", code=2)
    assert f"delete {name}/3 by --yes" in run("delete", name, "3", code=2)
    assert "its package with it" in run("delete", name, "3", "--yes", "--reason", "old")
    assert json.loads(run("history", name, "--json"))[-1]["action"] == "delete"


@pytest.mark.usefixtures("home")
def test_the_commands_that_only_look(registry: Registry, name: str, tmp_path: Path) -> None:
    first, second = register(registry, name, 2)
    told = run("compare", f"{name}/1", f"{name}/2")
    assert "It is unknown whether these metrics were measured on the same images" in told
    assert "train with the same --seed, --split-file or --test-data" in told
    assert "+0.0100" in told
    for version, accuracy in ((first, 0.5), (second, 0.75)):
        evaluated(registry, version, accuracy)
    assert "Measured on the same images: parts/test" in run("compare", f"{name}/1", f"{name}/2")
    assert json.loads(run("compare", f"{name}/1", f"{name}/2", "--json"))["same_images"] is True
    for version in (first, second):
        evaluated(registry, version, 0.9, digest=HARD, num_leaked=7, leakage="It has seen them.")
    assert "fair comparison" not in run("compare", f"{name}/1", f"{name}/2")  # on images that count
    told = run("compare", f"{name}/1", f"{name}/2", f"{name}/1")
    assert f"{name}/2 - {name}/1" in told
    assert f"Which version of '{name}'?" in run("compare", f"{name}/1", name, code=2)
    origin = json.loads(run("lineage", f"{name}/1", "--json"))
    assert (origin["run"], origin["mlflow_run"]) == (f"register {name}", first.run_id)
    assert first.run_id is not None
    assert first.run_id in run("lineage", f"{name}/1")
    keep_split(registry, first, [("/photos/1.png", "1", "cat", "train")])
    told = run("trained-on", "/photos/1.png")
    assert f"{name}/1" in told
    assert f"{name}/2" in told.partition("Unknown, as their runs kept no table of images: ")[2]
    assert "No version is known to have been given" in run("trained-on", "/photos/2.png")
    assert json.loads(run("list", "--json"))


@pytest.mark.usefixtures("home")
def test_a_comparison_on_images_of_the_training_says_how_to_get_a_fair_one(
    registry: Registry, name: str
) -> None:
    for version in register(registry, name, 2):
        evaluated(registry, version, 0.9, num_leaked=7, leakage="It was trained on 7 of them.")
    told = run("compare", f"{name}/1", f"{name}/2")
    assert "It was trained on 7 of them. For a fair comparison, evaluate each on the same" in told


@pytest.mark.usefixtures("home")
def test_the_cost_of_a_pruned_version_is_compared_and_shown(registry: Registry, name: str) -> None:
    register(registry, name)
    architecture = lenet().model_copy(
        update={"channels": {"classifier.0": (400, 60), "classifier.2": (60, 84)}}
    )
    register(registry, name, architecture=architecture, module=build(architecture).eval())
    told = run("compare", f"{name}/1", f"{name}/2").replace(" │", "")
    assert "multiply adds 415,932 386,892 (-7.0%)" in told
    assert "lenet5 lenet5 (pruned) differs" in told
    told = run("show", f"{name}/2").replace(" │", "")
    assert "386,892 an image" in told
    shown = json.loads(run("show", f"{name}/2", "--json"))
    assert shown["cost"] == {"multiply_adds": 386_892, "parameters": 32_011}
    assert shown["architecture"]["channels"] == {
        "classifier.0": [400, 60],
        "classifier.2": [60, 84],
    }


@pytest.mark.usefixtures("home")
def test_the_list_of_models_shows_the_version_of_every_alias(registry: Registry, name: str) -> None:
    register(registry, name, 2)
    registry.set_alias(name, "candidate", 1)
    registry.set_alias(name, "staging", 2)
    assert f"{name}/2 candidate: version 1, staging: version 2" in run("list").replace(" │", "")
    (listed,) = [one for one in json.loads(run("list", "--json")) if one["name"] == name]
    assert (listed["version"], listed["aliases"]) == (2, ["staging"])
    assert listed["model_aliases"] == {"candidate": 1, "staging": 2}
    told = run("list", name).replace(" │", "")
    assert f"{name}/2 staging" in told
    assert f"{name}/1 candidate" in told


@pytest.mark.usefixtures("home")
def test_a_version_is_shown_with_the_name_and_the_id_of_its_run(
    registry: Registry, name: str
) -> None:
    (version,) = register(registry, name)
    assert f"register {name} (MLflow run {version.run_id})" in run("show", f"{name}/1")
    shown = json.loads(run("show", f"{name}/1", "--json"))
    (listed,) = json.loads(run("list", name, "--json"))
    for one in (shown, listed):
        assert (one["run"], one["mlflow_run"]) == (f"register {name}", version.run_id)


@pytest.mark.usefixtures("home")
def test_the_list_has_a_line_for_each_version_with_its_first_metric(
    registry: Registry, name: str
) -> None:
    metrics = {"test_accuracy": 0.91, "test_f1_macro": 0.8, "test_ece": 0.1}
    _, second = register(registry, name, 2, metrics=metrics)
    registry.record_verdict(second, ("It is no better.",))
    told = run("list", name)
    assert "accuracy 0.9100" in told
    assert "f1_macro" not in told
    assert "did not learn" in told
    newest, oldest = json.loads(run("list", name, "--json"))
    assert oldest["metrics"] == metrics
    assert (oldest["did_not_learn"], newest["did_not_learn"]) == ([], ["It is no better."])


@pytest.mark.usefixtures("home")
def test_a_version_is_shown_with_its_settings_and_what_its_evaluations_are_worth(
    registry: Registry, name: str
) -> None:
    task = Binary(labels=("dog", "cat"), threshold=0.25, temperature=1.5)
    (version,) = register(registry, name, task=task)
    evaluated(registry, version, 0.9)
    later = "2026-05-05T00:00:00+00:00"
    evaluated(
        registry, version, 0.99, digest=HARD, data="old/", num_leaked=70, leakage="x", created=later
    )
    registry.record_verdict(version, ("It is no better.",))
    told = run("show", f"{name}/1")
    for text in (
        "did not learn: It is no better.",
        "2: dog, cat",
        "positive label │ cat",
        "threshold │ 0.25",
        "temperature │ 1.5",
        "32 x 32 pixels, gray",
        "does not count: 70 images were used to train it",
    ):
        assert text in told
    shown = json.loads(run("show", f"{name}/1", "--json"))
    assert shown["settings"]["positive label"] == "cat"
    assert shown["did_not_learn"] == ["It is no better."]
    assert [(one["data"], one["counts"]) for one in shown["evaluations"]] == [
        ("old/", False),
        ("parts/test", True),
    ]


@pytest.mark.usefixtures("home")
def test_an_alias_is_moved_to_another_kind_of_model_by_force(registry: Registry, name: str) -> None:
    register(registry, name)
    register(registry, name, task=Binary(labels=("dog", "cat")))
    run("alias", name, "live", "1")
    assert "task binary instead of multiclass" in run("alias", name, "live", "2", code=2)
    assert f"is now {name}/2" in run("alias", name, "live", "2", "--force")
