"""Promotion on evidence and rollback, on a real MLflow with SQLite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from eagleray.core.errors import InputError, KpiFailedError, PackageError, UnknownNameError
from eagleray.evaluation.kpi import parse_kpis
from eagleray.inference.predictor import Predictor
from eagleray.registry.promotion import promote, rollback
from eagleray.registry.registry import ModelVersion, Registry
from tests.support.models import DIGITS, LINEAGE, golden_png, lenet_module, small_package
from tests.support.registry import EASY, HARD, KPIS, evaluated, register

# --- promotion --------------------------------------------------------------------------------


def test_a_version_that_is_good_enough_is_promoted_and_the_history_says_why(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    evaluated(registry, first, 0.95)
    promotion = promote(registry, name, 1, alias="production", kpis=KPIS, actor="ada")
    assert promotion.change.previous is None
    assert str(promotion.kpi_results[1]).endswith("the alias was unset")

    evaluated(registry, second, 0.96, f1=0.895)
    promote(registry, name, 2, alias="production", kpis=KPIS, actor="grace", reason="more data")
    assert registry.get(name, alias="production").version == 2
    change = registry.history.changes(name, "production")[-1]
    assert (change.number, change.previous, change.version) == (2, 1, 2)
    assert (change.action, change.actor, change.reason) == ("promote", "grace", "more data")
    assert change.evidence["test_digest"] == EASY
    assert change.evidence["digest"] == second.digest
    assert change.evidence["forced"] is False
    assert change.evidence["kpis"][1] == {
        "kpi": "f1_macro >= current - 0.01",
        "value": 0.895,
        "limit": 0.89,
        "passed": True,
        "not_counted": None,
    }


def test_every_failed_kpi_is_reported_with_its_value_and_the_alias_stays(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    evaluated(registry, first, 0.95)
    registry.set_alias(name, "production", 1)
    evaluated(registry, second, 0.85, f1=0.7)
    with pytest.raises(KpiFailedError, match=r"^[^\n]+$") as caught:
        promote(registry, name, 2, alias="production", kpis=KPIS)
    assert str(caught.value) == (
        f"{name}/2 fails KPIs for {name}@production on parts/test: "
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
def test_without_common_images_the_refusal_names_the_command_to_run(
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


def test_images_that_a_version_learned_from_are_no_evidence(registry: Registry, name: str) -> None:
    first, second = register(registry, name, 2)
    leaked: dict[str, Any] = {"num_leaked": 70, "leakage": "70 of these 100 images taught it."}
    evaluated(registry, first, 0.99, data="all", **leaked)
    with pytest.raises(InputError, match=r"images that it was trained on do not count: all\)"):
        promote(registry, name, 1, alias="production", kpis=KPIS)
    words = ("a b.csv", "--split", "test")
    evaluated(registry, first, 0.95, digest=HARD, data="rest", arguments=words)
    promote(registry, name, 1, alias="production", kpis=KPIS)
    evaluated(registry, second, 0.99, data="all")
    with pytest.raises(InputError) as caught:
        promote(registry, name, 2, alias="production", kpis=KPIS)
    assert str(caught.value).endswith(f"run: eagleray evaluate {name}/2 'a b.csv' --split test")


def test_another_kind_of_model_is_promoted_by_force_alone(registry: Registry, name: str) -> None:
    register(registry, name)
    registry.set_alias(name, "production", 1)
    other = DIGITS.model_copy(update={"labels": ("one", "two", "zero")})
    (version,) = register(registry, name, task=other)
    evaluated(registry, version, 0.99)
    with pytest.raises(InputError, match="labels in another order"):
        promote(registry, name, 2, alias="production", kpis=KPIS)
    promotion = promote(
        registry, name, 2, alias="production", kpis=None, force=True, reason="callers know"
    )
    (difference,) = promotion.change.evidence["differences"]
    assert difference.startswith("labels in another order")


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
    with pytest.raises(KpiFailedError, match=r"on hard: accuracy >= 0\.9: failed with 0\.2"):
        promote(registry, name, 2, alias="production", kpis=KPIS)


def test_force_needs_a_reason_and_is_recorded_with_the_failed_kpis(
    registry: Registry, name: str
) -> None:
    first, second = register(registry, name, 2)
    with pytest.raises(InputError, match="name a file of KPIs with --kpi"):
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


def test_promoting_the_current_version_again_is_refused(registry: Registry, name: str) -> None:
    register(registry, name)
    registry.set_alias(name, "production", 1)
    with pytest.raises(InputError, match=f"{name}/1 is {name}@production already"):
        promote(registry, name, 1, alias="production", kpis=KPIS)


def test_a_kpi_on_an_unknown_metric_is_refused(registry: Registry, name: str) -> None:
    (version,) = register(registry, name)
    evaluated(registry, version, 0.9)
    with pytest.raises(UnknownNameError, match="Nearest: accuracy"):
        promote(registry, name, 1, alias="live", kpis=parse_kpis("acuracy > 0", where="kpi.txt"))


def test_the_version_that_the_alias_has_at_the_move_is_compared(
    registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = register(registry, name, 3)
    registry.set_alias(name, "production", 1)
    for version, f1 in ((first, 0.5), (second, 0.9), (third, 0.6)):
        evaluated(registry, version, 0.95, f1=f1)

    def check(*_: object) -> None:
        registry.set_alias(name, "production", 2)

    monkeypatch.setattr(Predictor, "require_healthy", check)
    with pytest.raises(KpiFailedError, match=r"failed with 0.6 \(current: 0.9\)"):
        promote(registry, name, 3, alias="production", kpis=KPIS)
    assert registry.get(name, alias="production").version == 2


def test_altered_files_stop_promotion_and_rollback(registry: Registry, name: str) -> None:
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


def test_a_model_with_other_predictions_is_not_promoted(registry: Registry, name: str) -> None:
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
    change = rollback(registry, name, alias="production", actor="ada", reason="slow")
    assert (change.version, change.previous, change.number) == (2, 3, 4)
    assert (change.action, change.actor, change.reason) == ("rollback", "ada", "slow")
    assert rollback(registry, name, alias="production").version == 1
    with pytest.raises(InputError, match=rf"^{name}@production has no version before {name}/1; "):
        rollback(registry, name, alias="production")
    registry.set_alias(name, "production", 3)
    assert rollback(registry, name, alias="production").version == 1
    assert registry.get(name, alias="production").version == 1


def test_without_an_alias_there_is_nothing_to_roll_back(registry: Registry, name: str) -> None:
    register(registry, name)
    with pytest.raises(UnknownNameError, match="No alias of model"):
        rollback(registry, name, alias="production")


# --- KPIs that compare with the parent --------------------------------------------------------

PARENT = parse_kpis("accuracy >= parent - 0.005", where="kpi.txt")


def child_of(registry: Registry, parent: ModelVersion) -> ModelVersion:
    lineage = LINEAGE.model_copy(update={"parent": parent.digest})
    return register(registry, parent.name, lineage=lineage)[0]


def test_a_version_is_promoted_if_it_loses_little_of_its_parent(
    registry: Registry, name: str
) -> None:
    (parent,) = register(registry, name)
    child = child_of(registry, parent)
    evaluated(registry, parent, 0.95)
    evaluated(registry, parent, 0.99, digest=HARD)  # not compared: the child has none on these
    evaluated(registry, child, 0.946)
    (result,) = promote(registry, name, 2, alias="edge", kpis=PARENT).kpi_results
    assert result.passed
    assert result.limit == pytest.approx(0.945)

    evaluated(registry, child, 0.944)
    with pytest.raises(KpiFailedError, match=r"failed with 0\.944 \(parent: 0\.95\)"):
        promote(registry, name, 2, alias="other", kpis=PARENT)


def test_without_a_parent_or_its_evaluation_the_refusal_says_what_to_do(
    registry: Registry, name: str
) -> None:
    (parent,) = register(registry, name)
    child = child_of(registry, parent)
    evaluated(registry, child, 0.9)
    expected = f"{name}/2 and {name}/1, which is its parent, have no evaluation on the same images"
    with pytest.raises(InputError, match=f"{expected}; run: eagleray evaluate {name}/1 parts/test"):
        promote(registry, name, 2, alias="edge", kpis=PARENT)
    evaluated(registry, parent, 0.9)
    with pytest.raises(InputError, match="compares with the version that"):
        promote(registry, name, 1, alias="edge", kpis=PARENT)


def test_current_and_parent_are_compared_on_the_same_images(registry: Registry, name: str) -> None:
    (parent,) = register(registry, name)
    current = register(registry, name, lineage=LINEAGE)[0]
    child = child_of(registry, parent)
    registry.set_alias(name, "edge", current.version)
    kpis = parse_kpis("accuracy >= parent - 0.01\naccuracy >= current - 0.01", where="kpi.txt")
    evaluated(registry, child, 0.9, digest=EASY)
    evaluated(registry, child, 0.8, digest=HARD, created="2025-01-01T00:00:00+00:00")
    evaluated(registry, parent, 0.9, digest=EASY)
    evaluated(registry, parent, 0.8, digest=HARD)
    evaluated(registry, current, 0.8, digest=HARD)
    promotion = promote(registry, name, 3, alias="edge", kpis=kpis)
    assert [result.value for result in promotion.kpi_results] == [0.8, 0.8]
