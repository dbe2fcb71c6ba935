"""The registry on a real MLflow with SQLite: versions, aliases, deletion, and failures."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import InputError, PackageError, UnknownNameError, UserError
from eagleray.core.settings import Settings, read_settings
from eagleray.models.package import write_package
from eagleray.registry.mlflow_models import all_pages
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.registry.versions import FOLDER_TAG, package_tags
from eagleray.tasks import Multiclass
from tests.support.models import lenet_module, registry_in, settings_in, small_package
from tests.support.registry import register

BETTER: dict[str, Any] = {"metrics": {"accuracy": 0.9, "f1_macro": 0.8}}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for the module; tests keep apart by the names of their models."""
    return registry_in(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def digits(registry: Registry) -> tuple[ModelVersion, ModelVersion]:
    """Two versions of `digits`; nobody may change them."""
    first = registry.register(small_package(), alias="production")
    return first, registry.register(small_package(**BETTER), alias="candidate")


# --- versions ---------------------------------------------------------------------------------


def test_registering_again_makes_the_next_version(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    first, second = digits
    assert (first.reference, second.reference) == ("digits/1", "digits/2")
    assert (first.aliases, second.aliases) == (("production",), ("candidate",))
    assert first.digest == small_package().digest != second.digest
    assert (first.task, first.architecture) == ("multiclass", "lenet5")
    assert first.created <= second.created
    assert first.run_id != second.run_id
    assert "digits" in registry.names()


def test_versions_are_listed_newest_first_with_their_metrics(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    listed = registry.versions("digits")
    assert listed == [digits[1], digits[0]]
    assert [dict(version.metrics) for version in listed] == [BETTER["metrics"], {"accuracy": 0.5}]


def test_a_version_is_found_by_number_and_by_alias(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    assert registry.get("digits", version=1) == digits[0]
    assert registry.get("digits", version=2) == digits[1]
    assert registry.get("digits", alias="production") == digits[0]
    assert registry.get("digits", alias="candidate") == digits[1]


def test_a_registered_package_is_loaded_unchanged(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    for version, package in zip(digits, (small_package(), small_package(**BETTER)), strict=True):
        loaded = registry.load(version)
        assert loaded.digest == package.digest == version.digest
        assert dict(loaded.files) == dict(package.files)


def test_another_process_finds_the_same_models(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    again = Registry(registry.settings)
    assert again.versions("digits") == [digits[1], digits[0]]
    assert again.load(again.get("digits", alias="production")).digest == digits[0].digest


def test_a_run_of_the_registry_carries_its_own_registration(registry: Registry) -> None:
    with registry.start_run("training") as run:
        run.log_parameters({"epochs": 3, "long": "x" * 10_000})
        run.log_metrics({"loss": 0.25}, step=2)
        version = registry.register(small_package(name="trained"), run=run)
        assert version.run_id == run.run_id
        recorded = registry.client.get_run(run.run_id)
        assert recorded.info.status == "RUNNING"  # whoever opened it ends it
        assert recorded.data.params["epochs"] == "3"
        assert recorded.data.metrics["loss"] == 0.25
    assert registry.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_registration_without_run_opens_one_and_ends_it(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    assert digits[0].run_id is not None
    run = registry.client.get_run(digits[0].run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"accuracy": 0.5}


# --- aliases ----------------------------------------------------------------------------------


def test_an_alias_moves(registry: Registry) -> None:
    for _ in range(2):
        registry.register(small_package(name="moving"), alias="live")
    assert registry.get("moving", alias="live").version == 2
    assert registry.get("moving", version=1).aliases == ()
    registry.set_alias("moving", "live", 1)
    registry.set_alias("moving", "a_second-1", 1)
    assert registry.get("moving", alias="live").version == 1
    assert [item.aliases for item in registry.versions("moving")] == [(), ("a_second-1", "live")]


RESERVED = [
    "latest",
    "v1",
    "V22",
    "1",
    "a b",
    "a.b",
    "a/b",
    "a@b",
    "-a",
    "é",
    "",
    "live\n",
    "x" * 65,
    pytest.param(
        "Latest",
    ),
]


@pytest.mark.parametrize("alias", RESERVED)
def test_names_that_cannot_be_an_alias_are_refused_before_anything_happens(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion], alias: str
) -> None:
    with pytest.raises(InputError) as caught:
        registry.set_alias("digits", alias, 1)
    assert str(caught.value).startswith(f"{alias!r} cannot be an alias: take letters")
    with pytest.raises(InputError, match="cannot be an alias"):
        registry.register(small_package(name="never-made"), alias=alias)
    assert "never-made" not in registry.names()


# --- what is not there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "error", "expected"),
    [
        ("digts", {"version": 1}, UnknownNameError, "model is named 'digts'. Nearest: digits."),
        ("DIGITS", {"version": 1}, UnknownNameError, "Nearest: digits."),
        ("di'gits", {"version": 1}, UnknownNameError, "Nearest: digits."),
        ("digits", {"version": 3}, InputError, "Model 'digits' has no version 3; the newest is 2."),
        ("digits", {"version": 0}, InputError, "Model 'digits' has no version 0; the newest is 2."),
        (
            "digits",
            {"alias": "prod"},
            UnknownNameError,
            "No alias of model 'digits' is named 'prod'. Nearest: production.",
        ),
        (
            "digits",
            {"alias": "v1"},
            UnknownNameError,
            "No alias of model 'digits' is named 'v1'. It has candidate, production; set this one, "
            "or name a version by its number.",
        ),
    ],
)
def test_what_is_not_there_is_one_sentence_with_what_is(
    registry: Registry,
    digits: tuple[ModelVersion, ModelVersion],
    name: str,
    asked: dict[str, Any],
    error: type[UserError],
    expected: str,
) -> None:
    with pytest.raises(error, match=r"^[^\n]+$") as caught:
        registry.get(name, **asked)
    assert expected in str(caught.value)


def test_lists_and_aliases_of_unknown_models_name_the_nearest(
    registry: Registry, digits: tuple[ModelVersion, ModelVersion]
) -> None:
    with pytest.raises(UnknownNameError, match="Nearest: digits"):
        registry.versions("digit")
    with pytest.raises(UnknownNameError, match="Nearest: digits"):
        registry.set_alias("digit", "live", 1)
    with pytest.raises(InputError, match="has no version 9; the newest is 2"):
        registry.set_alias("digits", "live", 9)


def test_a_model_without_versions_says_so(registry: Registry) -> None:
    registry.client.create_registered_model("hollow")
    assert registry.versions("hollow") == []
    with pytest.raises(InputError, match="'hollow' has no version 1; the newest is 0"):
        registry.get("hollow", version=1)


# --- runs that are gone on with ---------------------------------------------------------------


def test_a_run_knows_the_version_that_it_has_made(registry: Registry) -> None:
    with registry.start_run("train kept") as run, registry.start_run("train lost") as other:
        assert registry.version_of_run(run, "kept") is None
        version = registry.register(small_package(name="kept"), run=run, alias="candidate")
        assert registry.version_of_run(run, "kept") == version
        assert registry.version_of_run(run, "other") is None
        assert registry.version_of_run(other, "kept") is None


def test_an_alias_that_a_registration_moved_is_known_wherever_it_is(registry: Registry) -> None:
    first = registry.register(small_package(name="first"))
    registry.set_alias("first", "candidate", 1)
    assert not registry.was_registered_as(first, "candidate")
    second = registry.register(small_package(name="first", **BETTER), alias="candidate")
    registry.set_alias("first", "candidate", 1)
    assert registry.was_registered_as(second, "candidate")
    assert not registry.was_registered_as(second, "production")


def test_why_a_run_did_not_learn_is_kept_with_its_version(registry: Registry) -> None:
    version = registry.register(small_package(name="lazy"))
    assert registry.record_verdict(version, ()) == version
    registry.record_verdict(version, ("It is no better.", "It diverged."))
    found = registry.get("lazy", version=1)
    assert found.did_not_learn == ("It is no better.", "It diverged.")
    run = registry.client.get_run(version.run_id)
    assert run.data.tags["eagleray.did_not_learn"] == "It is no better.\nIt diverged."


OTHER_LABELS = Multiclass(labels=("one", "three", "zero"))


def test_an_alias_is_not_moved_to_another_kind_of_model_unless_forced(registry: Registry) -> None:
    registry.register(small_package(name="kinds"), alias="live")
    other = small_package(name="kinds", task=OTHER_LABELS)
    said = (
        r"^kinds@live points to another kind of model, and its callers would notice: "
        r"labels with three and without two\. Use --force to move it, or name another alias\.$"
    )
    with pytest.raises(InputError, match=said):
        registry.register(other, alias="live")
    assert len(registry.versions("kinds")) == 1
    registry.register(other, alias="other")
    with pytest.raises(InputError, match=said):
        registry.set_alias("kinds", "live", 2)
    registry.set_alias("kinds", "live", 2, force=True)
    registry.register(small_package(name="kinds"), alias="live", force=True)
    assert registry.alias_target("kinds", "live") == 3


def test_an_alias_moves_away_from_a_version_whose_files_are_lost(registry: Registry) -> None:
    lost = registry.register(small_package(name="lost"), alias="live")
    (Path(lost.source) / "model.json").unlink()
    registry.register(small_package(name="lost", task=OTHER_LABELS), alias="live")
    assert registry.alias_target("lost", "live") == 2


def test_an_epoch_is_recorded_once(registry: Registry) -> None:
    with registry.start_run("train told") as run:
        run.log_epoch(1, {"train_loss": 0.5})
    with registry.start_run("train told", run_id=run.run_id) as resumed:
        for epoch in (1, 2):
            resumed.log_epoch(epoch, {"train_loss": 0.25})
    history = registry.client.get_metric_history(run.run_id, "train_loss")
    assert [(item.step, item.value) for item in history] == [(1, 0.5), (2, 0.25)]


# --- versions of earlier releases ------------------------------------------------------------


def test_a_version_with_its_package_beside_the_run_s_files_works_as_before(
    registry: Registry, tmp_path: Path
) -> None:
    package = small_package(name="earlier")
    write_package(package, str(tmp_path / "package"))
    with registry.start_run("train earlier") as run:
        registry.client.log_artifacts(run.run_id, str(tmp_path / "package"), "package")
    registry.client.create_registered_model("earlier")
    tags = {key: value for key, value in package_tags(package).items() if key != FOLDER_TAG}
    source = f"{run.artifact_uri}/package"
    registry.client.create_model_version("earlier", source, run.run_id, tags=tags)
    version = registry.get("earlier", version=1)
    assert version.source == source
    assert version.run_folder == run.artifact_uri
    assert registry.load(version).digest == package.digest
    registry.register(small_package(name="earlier"))
    registry.delete("earlier", 1)
    assert not Path(source).exists()
    assert registry.load(registry.get("earlier", version=2)).digest == package.digest


# --- behind the registry's back ---------------------------------------------------------------


def test_altered_weights_are_refused(registry: Registry) -> None:
    version = registry.register(small_package(name="altered"))
    weights = Path(version.source) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PackageError, match=r"^[^\n]+$") as caught:
        registry.load(version)
    assert "model.safetensors is not the file that model.json describes" in str(caught.value)


def test_another_package_in_the_place_of_a_version_is_refused(registry: Registry) -> None:
    version = registry.register(small_package(name="replaced"))
    other = small_package(name="replaced", module=lenet_module(3, seed=1))
    write_package(other, version.source)
    with pytest.raises(PackageError, match=r"^[^\n]+$") as caught:
        registry.load(version)
    assert f"holds package {other.digest[:12]}" in str(caught.value)
    assert f"but {version.digest[:12]} was registered" in str(caught.value)


def test_a_deleted_package_is_reported_as_missing(registry: Registry) -> None:
    version = registry.register(small_package(name="deleted"))
    shutil.rmtree(version.source)
    with pytest.raises(PackageError, match=r"is not a model package: it has no model.json"):
        registry.load(version)


def test_a_registration_that_fails_ends_its_run(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.client, "log_artifacts", disk_full)
    with contextlib.suppress(OSError, UserError):
        registry.register(small_package(name="unlucky"))
    experiment = registry.client.get_experiment_by_name("eagleray")
    runs = registry.client.search_runs([experiment.experiment_id])
    status = [run.info.status for run in runs if run.info.run_name == "register unlucky"]
    assert status == ["FAILED"]


# --- where it is ------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:9", "The MLflow registry at http://127.0.0.1:9 does not answer"),
        ("http://ada:hush@127.0.0.1:9", "The MLflow registry at http://ada:***@127.0.0.1:9 does"),
        ("nonsense://server", "The MLflow registry at nonsense://server does not answer"),
        pytest.param(
            "sqlite:///{tmp}/a-file/mlflow.db",
            "The MLflow registry at sqlite:///{tmp}/a-file/mlflow.db does not answer",
        ),
    ],
)
def test_a_registry_that_does_not_respond_is_one_sentence_within_seconds(
    tmp_path: Path, uri: str, expected: str
) -> None:
    (tmp_path / "a-file").write_text("")
    settings = Settings(home=tmp_path / "home", tracking_uri=uri.format(tmp=tmp_path))
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        Registry(settings)
    assert str(caught.value).startswith(expected.format(tmp=tmp_path))
    assert str(caught.value).endswith("check EAGLERAY_TRACKING_URI.")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("home", ["my höme #1", "semi;colon & more"])
def test_a_home_with_an_odd_name_holds_database_and_packages(tmp_path: Path, home: str) -> None:
    settings = settings_in(tmp_path, home)
    registry = Registry(settings)
    version = registry.register(small_package())
    assert registry.load(version).digest == small_package().digest
    assert [path.name for path in tmp_path.iterdir()] == [home]
    assert {path.name for path in (tmp_path / home).iterdir()} == {
        "artifacts",
        "mlflow.db",
        "mlflow.db.lock",
    }


@pytest.mark.parametrize("home", ["what?", "100%"])
def test_a_home_that_no_database_address_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / home))
    with pytest.raises(InputError, match=r"^EAGLERAY_HOME: .* must not contain"):
        read_settings()


def test_packages_go_where_the_artifact_root_says(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", artifact_root=str(tmp_path / "elsewhere"))
    version = Registry(settings).register(small_package())
    assert version.source.startswith(str(tmp_path / "elsewhere"))
    assert not (tmp_path / "home" / "artifacts").exists()


# --- many -------------------------------------------------------------------------------------


def test_more_than_a_page_of_models_and_versions_is_listed(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    for index in range(101):
        registry.client.create_registered_model(f"model-{index:03d}")
        registry.client.create_model_version("model-000", source=str(tmp_path))
    assert registry.names() == [f"model-{index:03d}" for index in range(101)]
    listed = [item.version for item in registry.versions("model-000")]
    assert listed == list(range(101, 0, -1))


class Page(list[int]):
    """A page of results as MLflow's client returns it."""

    def __init__(self, items: list[int], token: str | None) -> None:
        super().__init__(items)
        self.token = token


def test_every_page_is_requested_once_and_with_the_same_query() -> None:
    pages = {None: Page([1, 2], "two"), "two": Page([], "three"), "three": Page([3], "")}
    asked: list[tuple[str | None, str]] = []

    def search(*, page_token: str | None, filter_string: str) -> Page:
        asked.append((page_token, filter_string))
        return pages[page_token]

    assert all_pages(search, filter_string="name = 'a'") == [1, 2, 3]
    assert asked == [(None, "name = 'a'"), ("two", "name = 'a'"), ("three", "name = 'a'")]


def test_the_newest_version_of_each_model_takes_one_query(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    assert registry.latest_versions() == []
    registry.client.create_registered_model("hollow")
    register(registry, "zebra", 2)
    register(registry, "ant", 1)
    registry.set_alias("zebra", "production", 2)
    registry.set_alias("zebra", "candidate", 1)
    newest = registry.latest_versions()
    assert newest == [registry.get("ant", version=1), registry.get("zebra", version=2)]
    assert newest[1].aliases == ("production",)
    assert [item.reference for item in registry.all_versions()] == ["ant/1", "zebra/2", "zebra/1"]


# --- deletion ---------------------------------------------------------------------------------


def test_registering_under_an_alias_is_in_the_history(registry: Registry, name: str) -> None:
    registry.register(small_package(name=name), alias="candidate")
    (change,) = registry.history.changes(name)
    assert (change.alias, change.action, change.version) == ("candidate", "register", 1)
    assert change.actor == registry.settings.actor


def test_a_deleted_version_is_gone_with_its_files_and_its_number_is_not_used_again(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    registry.set_alias(name, "production", 1)
    with pytest.raises(InputError, match=f"{name}@production points to {name}/1"):
        registry.delete(name, 1)
    change = registry.delete(name, 2, actor="ada", reason="wrong labels")
    assert (change.alias, change.action, change.version, change.applied) == ("", "delete", 2, True)
    assert not Path(second.source).exists()
    assert Path(first.source).exists()
    assert [version.version for version in registry.versions(name)] == [1]
    assert register(registry, name)[0].version == 3
    with pytest.raises(InputError, match="has no version 2"):
        registry.delete(name, 2)


def test_files_that_are_not_ours_or_not_only_ours_stay(registry: Registry, name: str) -> None:
    (version,) = register(registry, name)
    tags = {"eagleray.package_digest": version.digest}
    registry.client.create_model_version(name, version.source, run_id=version.run_id, tags=tags)
    registry.client.create_model_version(name, version.source, tags=tags)
    for number in (2, 3):
        assert registry.delete(name, number).evidence["files"] is None
    assert registry.load(version).digest == version.digest
    assert registry.delete(name, 1).evidence["files"] is not None
    assert not Path(version.source).exists()
