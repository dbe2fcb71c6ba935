"""Versions on a real MLflow with SQLite: promotion, rollback, comparison, lineage, deletion."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from eagleray.cli.models import models_app
from eagleray.core.errors import InputError, PackageError, UnknownNameError
from eagleray.evaluation.kpi import parse_kpis
from eagleray.evaluation.record import EvaluationRecord
from eagleray.models.package import Lineage
from eagleray.registry.comparison import ComparedVersion, Comparison, compare
from eagleray.registry.lineage import ImageUse, find_image_uses, trace_lineage
from eagleray.registry.promotion import promote, rollback
from eagleray.registry.registry import ModelVersion, Registry
from tests.support.models import LINEAGE, golden_png, lenet_module, registry_in, small_package

PARTS, HARD = "a" * 64, "b" * 64
KPIS = parse_kpis("accuracy >= 0.9\nf1_macro >= current - 0.01", where="kpi.txt")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for the module; tests keep apart by the names of their models."""
    return registry_in(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model's name that is this test's own."""
    return f"{request.node.originalname}-{secrets.token_hex(4)}"


def register(registry: Registry, name: str, count: int = 1, **overrides: Any) -> list[ModelVersion]:
    """Register versions that differ, with enough golden images to be checked by."""
    found = []
    for number in range(count):
        metrics = {"accuracy": 0.5 + number / 100}
        given = {"name": name, "metrics": metrics, "golden_images": [golden_png(0)], **overrides}
        found.append(registry.register(small_package(**given)))
    return found


def evaluated(
    registry: Registry,
    version: ModelVersion,
    accuracy: float,
    f1: float = 0.9,
    *,
    data: str = "parts/test",
    digest: str = PARTS,
    created: str = "2026-01-01T00:00:00+00:00",
) -> EvaluationRecord:
    record = EvaluationRecord(
        data=data,
        data_digest=digest,
        package_digest=version.digest,
        num_images=100,
        num_failed=0,
        metrics={"accuracy": accuracy, "f1_macro": f1},
        created=created,
    )
    registry.record_evaluation(version, record)
    return record


# --- evaluations ------------------------------------------------------------------------------


def test_evaluations_are_kept_with_the_version_newest_first(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    assert registry.evaluations(first) == []
    old = evaluated(registry, first, 0.5)
    new = evaluated(registry, first, 0.6, digest=HARD, created="2026-02-01T00:00:00+00:00")
    assert registry.evaluations(first) == [new, old]
    again = evaluated(registry, first, 0.7)
    assert registry.evaluations(first) == [new, again]
    assert registry.evaluations(second) == []


def test_an_evaluation_of_another_package_is_refused(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    record = evaluated(registry, first, 0.5)
    with pytest.raises(InputError, match=f"and {name}/2 is {second.digest[:12]}"):
        registry.record_evaluation(second, record)


# --- promotion --------------------------------------------------------------------------------


def test_a_version_that_is_good_enough_is_promoted_and_the_history_says_why(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    evaluated(registry, first, 0.95)
    promotion = promote(registry, name, 1, alias="production", kpis=KPIS, who="ada")
    assert promotion.change.previous is None
    assert str(promotion.kpi_results[1]).endswith("the alias was unset")

    evaluated(registry, second, 0.96, f1=0.895)
    promote(registry, name, 2, alias="production", kpis=KPIS, who="grace", reason="more data")
    assert registry.get(name, alias="production").version == 2
    change = registry.history.changes(name, "production")[-1]
    assert (change.number, change.previous, change.version) == (2, 1, 2)
    assert (change.action, change.who, change.reason) == ("promote", "grace", "more data")
    assert change.evidence["test_digest"] == PARTS
    assert change.evidence["digest"] == second.digest
    assert change.evidence["forced"] is False
    assert change.evidence["kpis"][1] == {
        "kpi": "f1_macro >= current - 0.01",
        "value": 0.895,
        "limit": 0.89,
        "passed": True,
    }


def test_every_missed_kpi_is_said_with_its_figures_and_the_alias_stays(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    evaluated(registry, first, 0.95)
    registry.set_alias(name, "production", 1)
    evaluated(registry, second, 0.85, f1=0.7)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        promote(registry, name, 2, alias="production", kpis=KPIS)
    assert str(caught.value) == (
        f"{name}/2 is not good enough for {name}@production on parts/test: "
        "accuracy >= 0.9: failed with 0.85; "
        "f1_macro >= current - 0.01: failed with 0.7 (current: 0.9)."
    )
    assert registry.get(name, alias="production").version == 1
    assert len(registry.history.changes(name, "production")) == 1


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        (None, None, "run both: eagleray evaluate {name}/2 DATA, eagleray evaluate {name}/1 DATA."),
        ("my data", None, "run: eagleray evaluate {name}/1 'my data'"),
        (None, "parts/test", "run: eagleray evaluate {name}/2 parts/test"),
        ("my data", "parts/test", "run: eagleray evaluate {name}/2 parts/test"),
    ],
)
def test_without_common_images_it_is_said_what_to_run(
    registry: Registry, name: str, own: str | None, others: str | None, expected: str
) -> None:
    first, second = register(registry, name, 2)
    registry.set_alias(name, "production", 1)
    if own:
        evaluated(registry, second, 0.99, data=own, digest=HARD)
    if others:
        evaluated(registry, first, 0.5, data=others)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        promote(registry, name, 2, alias="production", kpis=KPIS)
    assert str(caught.value).endswith(expected.format(name=name))
    assert f"{name}/1, which is {name}@production" in str(caught.value)
    assert registry.get(name, alias="production").version == 1


def test_a_first_promotion_needs_an_evaluation_too(registry: Registry, name: str) -> None:
    register(registry, name)
    with pytest.raises(InputError, match=f"run: eagleray evaluate {name}/1 DATA"):
        promote(registry, name, 1, alias="production", kpis=KPIS)


def test_the_newest_common_images_count(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    registry.set_alias(name, "production", 1)
    for version, accuracy in ((first, 0.95), (second, 0.95)):
        evaluated(registry, version, accuracy)
    evaluated(registry, first, 0.95, digest=HARD, data="hard", created="2026-03-01T00:00:00+00:00")
    evaluated(registry, second, 0.2, digest=HARD, data="hard", created="2026-03-02T00:00:00+00:00")
    with pytest.raises(InputError, match=r"on hard: accuracy >= 0\.9: failed with 0\.2"):
        promote(registry, name, 2, alias="production", kpis=KPIS)


def test_force_needs_a_why_and_is_recorded_with_what_was_missed(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    with pytest.raises(InputError, match="Name a file of KPIs with --kpi"):
        promote(registry, name, 1, alias="production", kpis=None)
    with pytest.raises(InputError, match="--force needs a --reason"):
        promote(registry, name, 1, alias="production", kpis=None, force=True, reason=" ")
    promote(registry, name, 1, alias="production", kpis=None, force=True, reason="demo at ten")
    for version in (first, second):
        evaluated(registry, version, 0.1)
    promote(registry, name, 2, alias="production", kpis=KPIS, force=True, reason="the other broke")
    changes = registry.history.changes(name, "production")
    assert [change.evidence["forced"] for change in changes] == [True, True]
    assert [item["passed"] for item in changes[1].evidence["kpis"]] == [False, True]


def test_a_version_that_is_there_already_is_said(registry: Registry, name: str) -> None:
    register(registry, name)
    registry.set_alias(name, "production", 1)
    with pytest.raises(InputError, match=f"{name}/1 is {name}@production already"):
        promote(registry, name, 1, alias="production", kpis=KPIS)


def test_a_kpi_on_a_metric_that_there_is_none_of(registry: Registry, name: str) -> None:
    (version,) = register(registry, name)
    evaluated(registry, version, 0.9)
    with pytest.raises(UnknownNameError, match="Nearest: accuracy"):
        promote(registry, name, 1, alias="live", kpis=parse_kpis("acuracy > 0", where="kpi.txt"))


def test_a_holder_that_changed_while_the_package_was_checked_counts(
    registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = register(registry, name, 3)
    registry.set_alias(name, "production", 1)
    for version, f1 in ((first, 0.5), (second, 0.9), (third, 0.6)):
        evaluated(registry, version, 0.95, f1=f1)

    def check(*_: object) -> None:
        registry.set_alias(name, "production", 2)

    monkeypatch.setattr("eagleray.registry.promotion._require_healthy", check)
    with pytest.raises(InputError, match=r"missed with 0.6 \(current: 0.9\)"):
        promote(registry, name, 3, alias="production", kpis=KPIS)
    assert registry.get(name, alias="production").version == 2


def test_altered_files_stop_both_ways(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    registry.set_alias(name, "production", 2)
    weights = Path(first.source) / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    registry.set_alias(name, "candidate", 1)
    with pytest.raises(PackageError, match="is not the file that"):
        promote(registry, name, 1, alias="production", kpis=None, force=True, reason="x")
    weights.write_bytes(sound)
    promote(registry, name, 1, alias="production", kpis=None, force=True, reason="x")
    (Path(second.source) / "model.safetensors").write_bytes(b"")
    with pytest.raises(PackageError, match="is not the file that"):
        rollback(registry, name, alias="production")
    assert registry.get(name, alias="production").version == 1


def test_a_model_that_answers_otherwise_is_not_promoted(registry: Registry, name: str) -> None:
    """Its golden outputs are of other weights, as after a change of a library."""
    sound = small_package(name=name, golden_images=[golden_png(0)])
    other = small_package(name=name, golden_images=[golden_png(0)], module=lenet_module(3, seed=5))
    files = {**sound.files, "golden.json": other.files["golden.json"]}
    digests = {**sound.manifest.files, "golden.json": other.manifest.files["golden.json"]}
    manifest = sound.manifest.model_copy(update={"files": digests})
    broken = replace(sound, manifest=manifest, files=MappingProxyType(files))
    registry.register(broken)
    with pytest.raises(PackageError, match="fails its golden images"):
        promote(registry, name, 1, alias="production", kpis=None, force=True, reason="x")
    with pytest.raises(UnknownNameError):
        registry.get(name, alias="production")


# --- rollback ---------------------------------------------------------------------------------


def test_rollbacks_go_back_as_far_as_there_was_anything(registry: Registry, name: str) -> None:
    register(registry, name, 3)
    for version in (1, 2, 3):
        registry.set_alias(name, "production", version)
    change = rollback(registry, name, alias="production", who="ada", reason="slow")
    assert (change.version, change.previous, change.number) == (2, 3, 4)
    assert (change.action, change.who, change.reason) == ("rollback", "ada", "slow")
    assert rollback(registry, name, alias="production").version == 1
    with pytest.raises(InputError, match=rf"^Nothing held {name}@production before {name}/1; "):
        rollback(registry, name, alias="production")
    registry.set_alias(name, "production", 3)
    assert rollback(registry, name, alias="production").version == 1
    assert registry.get(name, alias="production").version == 1


def test_without_an_alias_there_is_nothing_to_roll_back(registry: Registry, name: str) -> None:
    register(registry, name)
    with pytest.raises(UnknownNameError, match="No alias of model"):
        rollback(registry, name, alias="production")


def test_registering_under_an_alias_is_in_the_history(registry: Registry, name: str) -> None:
    registry.register(small_package(name=name), alias="candidate")
    (change,) = registry.history.changes(name)
    assert (change.alias, change.action, change.version) == ("candidate", "register", 1)
    assert change.who == registry.settings.actor


# --- deletion ---------------------------------------------------------------------------------


def test_a_deleted_version_is_gone_with_its_files_and_its_number_is_not_used_again(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    registry.set_alias(name, "production", 1)
    with pytest.raises(InputError, match=f"{name}/1 is {name}@production and stays"):
        registry.delete(name, 1)
    change = registry.delete(name, 2, who="ada", reason="wrong labels")
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


# --- comparison -------------------------------------------------------------------------------


def compared(registry: Registry, versions: list[ModelVersion]) -> Comparison:
    first, second = (ComparedVersion.read(registry, version) for version in versions)
    return compare(first, second)


def test_figures_on_the_same_images_are_compared(registry: Registry, name: str) -> None:
    versions = register(registry, name, 2)
    for version, accuracy in zip(versions, (0.5, 0.75), strict=True):
        evaluated(registry, version, accuracy)
    comparison = compared(registry, versions)
    assert comparison.same_images is True
    assert comparison.measured_on == "parts/test"
    shown = comparison.as_json()
    assert shown["metrics"]["accuracy"] == {"first": 0.5, "second": 0.75, "difference": 0.25}
    assert shown["facts"]["architecture"] == {"first": "lenet5", "second": "lenet5", "same": True}
    assert shown["facts"]["package"]["same"] is False


@pytest.mark.parametrize(
    ("tests", "same"),
    [((PARTS, PARTS), True), ((PARTS, HARD), False), ((PARTS, None), None), ((None, None), None)],
)
def test_without_evaluations_the_test_sets_say_whether_figures_compare(
    registry: Registry, name: str, tests: tuple[str | None, str | None], same: bool | None
) -> None:
    versions = [
        register(registry, name, lineage=LINEAGE.model_copy(update={"test_digest": test}))[0]
        for test in tests
    ]
    comparison = compared(registry, versions)
    assert (comparison.same_images, comparison.measured_on) == (same, None)
    assert [pair.metric for pair in comparison.metrics] == ["accuracy"]


# --- lineage ----------------------------------------------------------------------------------


def test_lineage_names_data_parent_and_what_the_run_kept(registry: Registry, name: str) -> None:
    (parent,) = register(registry, f"{name}-parent")
    lineage = Lineage.now(data_digest=PARTS, test_digest=HARD, parent=parent.digest)
    (child,) = register(registry, name, lineage=lineage)
    assert child.run_id is not None
    registry.client.log_text(child.run_id, "name: digits\n", "spec.yaml")
    origin = trace_lineage(registry, child)
    assert origin.parent == f"{name}-parent/1"
    assert (origin.data_digest, origin.test_digest, origin.split_digest) == (PARTS, HARD, None)
    assert origin.specification is not None
    assert Path(origin.specification).read_text() == "name: digits\n"
    assert origin.split is None
    assert trace_lineage(registry, parent).parent is None


def test_a_parent_that_is_not_in_the_registry_is_named_by_its_digest(
    registry: Registry, name: str
) -> None:
    (child,) = register(registry, name, lineage=Lineage.now(parent="c" * 64))
    assert trace_lineage(registry, child).parent == "c" * 64


def keep_split(registry: Registry, version: ModelVersion, rows: Sequence[tuple[str, ...]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, names=["uri", "version", "label", "part"])
    path = Path(version.source).parent / "split.parquet"
    pq.write_table(table, path, row_group_size=2)


def test_an_image_is_traced_to_the_versions_that_it_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_in(tmp_path)
    image = tmp_path / "a b.png"
    image.write_bytes(golden_png(0))
    now = str(image.stat().st_mtime_ns)
    versions = register(registry, "digits", 4)
    others = [(f"/other/{index}.png", "1", "two", "train") for index in range(5)]
    keep_split(registry, versions[0], [(str(image), now, "zero", "train"), *others])
    keep_split(registry, versions[1], [*others, (str(image), "1", "one", "test")])
    keep_split(registry, versions[2], others)
    monkeypatch.chdir(tmp_path)
    found = find_image_uses(registry, "a b.png")
    assert found.uri == str(image)
    assert found.uses == (
        ImageUse("digits/2", "test", "one", True),
        ImageUse("digits/1", "train", "zero", False),
    )
    assert found.unknown == ("digits/4",)
    image.unlink()
    assert [use.changed for use in find_image_uses(registry, str(image)).uses] == [None, None]


# --- listing ----------------------------------------------------------------------------------


def test_the_newest_of_each_model_comes_in_one_question(tmp_path: Path) -> None:
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


# --- the commands -----------------------------------------------------------------------------


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
        f"accuracy >= 0.9: reached with 0.95 {name}@production is now {name}/1, and was unset "
        "before (change 1)."
    )
    assert "missed with 0.5" in run("promote", name, "2", "--kpi", str(kpi), code=2)
    assert "Name a file of KPIs with --kpi" in run("promote", name, "2", code=2)
    forced = json.loads(run("promote", name, "2", "--force", "--reason", "demo", "--json"))
    assert (forced["from"], forced["to"], forced["who"]) == (1, 2, "Ada")
    assert f"is now {name}/1, after {name}/2" in run("rollback", name, "--reason", "slow")
    assert "Nothing held" in run("rollback", name, code=2)
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

    assert f"{name}/2 is {name}@staging and stays" in run("delete", name, "2", "--yes", code=2)
    assert f"delete {name}/3 by --yes" in run("delete", name, "3", code=2)
    assert "its package with it" in run("delete", name, "3", "--yes", "--reason", "old")
    assert json.loads(run("history", name, "--json"))[-1]["action"] == "delete"


@pytest.mark.usefixtures("home")
def test_the_commands_that_only_look(registry: Registry, name: str, tmp_path: Path) -> None:
    first, second = register(registry, name, 2)
    told = run("compare", f"{name}/1", f"{name}/2")
    assert "It is unknown whether these metrics were measured on the same images" in told
    assert "+0.0100" in told
    for version, accuracy in ((first, 0.5), (second, 0.75)):
        evaluated(registry, version, accuracy)
    assert "Measured on the same images: parts/test" in run("compare", f"{name}/1", f"{name}/2")
    assert json.loads(run("compare", f"{name}/1", f"{name}/2", "--json"))["same_images"] is True
    assert "is not a version" in run("compare", f"{name}/1", name, code=2)
    assert json.loads(run("lineage", f"{name}/1", "--json"))["run"] == first.run_id
    assert first.run_id is not None
    assert first.run_id in run("lineage", f"{name}/1")
    keep_split(registry, first, [("/photos/1.png", "1", "cat", "train")])
    told = run("trained-on", "/photos/1.png")
    assert f"{name}/1" in told
    assert f"{name}/2" in told.partition("Unknown, as their runs kept no table of images: ")[2]
    assert "No version is known to have been given" in run("trained-on", "/photos/2.png")
    assert json.loads(run("list", "--json"))
