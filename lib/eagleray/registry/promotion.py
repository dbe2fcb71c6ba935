"""Promotes a version to an alias on evidence, and rolls an alias back.

A promotion checks four things: that callers of the alias keep the same kind of model; the KPIs, on
an evaluation on the same images as one of the alias's current version; the package, against its
registered digest; and its golden images on this machine. A rollback checks the last two, as the
version was promoted before. An evaluation on images that the version learned from is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.core.errors import InputError, KpiFailedError
from eagleray.core.names import require_alias
from eagleray.evaluation.kpi import Baseline, Kpi, KpiResult, check_kpis
from eagleray.evaluation.record import EvaluationRecord
from eagleray.registry.alias_history import AliasChange
from eagleray.registry.registry import ModelVersion, Registry

__all__ = ["Promotion", "promote", "rollback"]


@dataclass(frozen=True, slots=True)
class Promotion:
    """The result of a promotion.

    Attributes:
        change: The change of the alias, as the history has it.
        kpi_results: The result for each KPI; none if the promotion was forced without KPIs.
    """

    change: AliasChange
    kpi_results: tuple[KpiResult, ...]


@dataclass(frozen=True, slots=True)
class _Decision:
    """The evidence for a promotion, relative to the alias's current version."""

    current: int | None
    kpi_results: tuple[KpiResult, ...]
    evaluation: EvaluationRecord | None
    differences: tuple[str, ...] = ()

    def evidence(self, *, forced: bool) -> dict[str, Any]:
        """Return the evidence for the history."""
        evaluation = self.evaluation
        return {
            "forced": forced,
            "test_digest": evaluation.data_digest if evaluation else None,
            "data": evaluation.data if evaluation else None,
            "kpis": [result.as_json() for result in self.kpi_results],
            "differences": list(self.differences),
        }


def promote(
    registry: Registry,
    name: str,
    version: int,
    *,
    alias: str,
    kpis: Sequence[Kpi] | None,
    reason: str = "",
    actor: str | None = None,
    force: bool = False,
) -> Promotion:
    """Point an alias to a version that passes its KPIs.

    Args:
        registry: The registry.
        name: The model's name.
        version: The version's number.
        alias: The alias; it need not exist.
        kpis: The KPIs that the version must pass; None only with `force`.
        reason: The actor's reason, for the history.
        actor: The user who promotes; None takes the settings' user.
        force: Promote whatever the metrics are, and a model of another task, labels or input too;
            it needs a `reason`.

    Raises:
        KpiFailedError: If the version misses a KPI; the alias does not move.
        InputError: If the version has no evaluation on the same images as the alias's current
            version, or is of another task, labels or input; the alias does not move.
        PackageError: If the package is not the registered one, or fails its golden images.
    """
    require_alias(alias)
    _require_reasons(kpis, reason, force)
    candidate = registry.get(name, version=version)
    decision = _decide(registry, candidate, alias, registry.alias_target(name, alias), kpis, force)
    _require_healthy(registry, candidate)
    with registry.history.lock(name) as locked:
        current = locked.alias_target(alias)
        if current != decision.current:  # the alias has moved before this process got the lock
            decision = _decide(registry, candidate, alias, current, kpis, force)
        change = locked.move(
            alias,
            version,
            action="promote",
            actor=actor or registry.settings.actor,
            reason=reason,
            evidence={"digest": candidate.digest, **decision.evidence(forced=force)},
        )
    return Promotion(change, decision.kpi_results)


def rollback(
    registry: Registry, name: str, *, alias: str, reason: str = "", actor: str | None = None
) -> AliasChange:
    """Point an alias back to its previous version.

    Another rollback goes back further: promotions push versions on a stack that rollbacks pop.

    Raises:
        UnknownNameError: If there is no such alias.
        InputError: If the alias has no previous version.
        PackageError: If the previous version's package is not the registered one, or fails its
            golden images; the alias does not move.
    """
    registry.get(name, alias=alias)
    with registry.history.lock(name) as locked:
        current = registry.get(name, alias=alias)
        targets = locked.rollback_targets(alias)
        if not targets:
            raise InputError(
                f"{name}@{alias} has no version before {current.reference}; "
                f"`eagleray models list {name}` shows the versions that it can be pointed to."
            )
        target = registry.get(name, version=targets[0])
        _require_healthy(registry, target)
        return locked.move(
            alias,
            target.version,
            action="rollback",
            actor=actor or registry.settings.actor,
            reason=reason,
            evidence={"digest": target.digest},
        )


def _require_reasons(kpis: Sequence[Kpi] | None, reason: str, force: bool) -> None:
    if kpis is None and not force:
        raise InputError(
            "A promotion needs KPIs: name a file of KPIs with --kpi, or promote without them by "
            "--force and a --reason."
        )
    if force and not reason.strip():
        raise InputError("A promotion by --force needs a --reason, which the history keeps.")


def _require_healthy(registry: Registry, version: ModelVersion) -> None:
    """Verify the package, and its golden images on this machine.

    Raises:
        PackageError: If the package is not the registered one, or fails its golden images.
    """
    from eagleray.inference.predictor import Predictor

    Predictor(registry.load(version)).require_healthy()


def _decide(
    registry: Registry,
    candidate: ModelVersion,
    alias: str,
    current: int | None,
    kpis: Sequence[Kpi] | None,
    force: bool,
) -> _Decision:
    """Check a candidate's KPIs, some of which compare it with the alias's current version.

    Raises:
        KpiFailedError: If the candidate misses a KPI, unless the promotion is forced.
        InputError: If it has no evaluation for the comparison, unless the promotion is forced.
    """
    if current == candidate.version:
        raise InputError(f"{candidate.reference} is {candidate.name}@{alias} already.")
    manifest = registry.manifest(candidate)
    if not force:
        registry.require_compatible(candidate.name, manifest, alias)
    differences = registry.differences(candidate.name, manifest, alias)
    if kpis is None:
        return _Decision(current, (), None, differences)
    baselines = _baselines(registry, candidate, current, kpis)
    evaluation, compared = _on_same_images(registry, candidate, baselines)
    if evaluation is None:
        if force:
            return _Decision(current, (), None, differences)
        raise InputError(_missing_evaluation(registry, candidate, alias, baselines))
    kpi_results = check_kpis(
        kpis, evaluation.metrics, compared.get("current"), compared.get("parent")
    )
    failed = [str(result) for result in kpi_results if not result.passed]
    if failed and not force:
        raise KpiFailedError(
            f"{candidate.reference} fails KPIs for {candidate.name}@{alias} on {evaluation.data}: "
            f"{'; '.join(failed)}."
        )
    return _Decision(current, kpi_results, evaluation, differences)


def _evidence_of(registry: Registry, version: ModelVersion) -> list[EvaluationRecord]:
    """Return the evaluations on images that the version has not learned from, newest first."""
    return [record for record in registry.evaluations(version) if record.counts]


def _baselines(
    registry: Registry, candidate: ModelVersion, current: int | None, kpis: Sequence[Kpi]
) -> dict[Baseline, ModelVersion]:
    """Return the versions that a candidate is compared with.

    Raises:
        InputError: If a KPI compares with the parent, and the registry has none.
    """
    found: dict[Baseline, ModelVersion] = {}
    if current is not None:
        found["current"] = registry.get(candidate.name, version=current)
    about_parent = next((kpi for kpi in kpis if kpi.baseline == "parent"), None)
    if about_parent is not None:
        digest = registry.manifest(candidate).lineage.parent
        parent = registry.version_of_package(digest) if digest is not None else None
        if parent is None:
            raise InputError(
                f"The KPI `{about_parent}` compares with the version that {candidate.reference} "
                "was made from, and the registry has none; compare with `current` or a number."
            )
        found["parent"] = parent
    return found


def _on_same_images(
    registry: Registry, candidate: ModelVersion, baselines: Mapping[Baseline, ModelVersion]
) -> tuple[EvaluationRecord | None, dict[Baseline, Mapping[str, float]]]:
    """Return the newest evaluation on images that every baseline has one on, and their metrics."""
    others = {
        name: {record.data_digest: record.metrics for record in _evidence_of(registry, version)}
        for name, version in baselines.items()
    }
    for record in _evidence_of(registry, candidate):
        if all(record.data_digest in found for found in others.values()):
            return record, {name: found[record.data_digest] for name, found in others.items()}
    return None, {}


def _missing_evaluation(
    registry: Registry,
    candidate: ModelVersion,
    alias: str,
    baselines: Mapping[Baseline, ModelVersion],
) -> str:
    """Describe in one sentence which evaluation is missing, with the command for it."""
    own = _evidence_of(registry, candidate)
    leaked = _say_leaked(registry, candidate)
    if not baselines:
        return (
            f"{candidate.reference} has no evaluation to check the KPIs on{leaked}; run: eagleray "
            f"evaluate {candidate.reference} DATA."
        )
    known = {record.data_digest for record in own}
    name, other = next(
        (
            (name, version)
            for name, version in baselines.items()
            if not known & {record.data_digest for record in _evidence_of(registry, version)}
        ),
        list(baselines.items())[-1],  # each shares some images, but not both the same
    )
    others = _evidence_of(registry, other)
    role = f"{candidate.name}@{alias}" if name == "current" else "its parent"
    beginning = (
        f"{candidate.reference} and {other.reference}, which is {role}, have no evaluation on the "
        f"same images{leaked}{_say_leaked(registry, other)}"
    )
    if others:
        return f"{beginning}; run: {others[0].command(candidate.reference)}"
    if own:
        return f"{beginning}; run: {own[0].command(other.reference)}"
    return (
        f"{beginning}; run both: eagleray evaluate {candidate.reference} DATA, eagleray evaluate "
        f"{other.reference} DATA."
    )


def _say_leaked(registry: Registry, version: ModelVersion) -> str:
    """Say which evaluations of a version do not count, as a part of a sentence."""
    names = [record.data for record in registry.evaluations(version) if not record.counts]
    if not names:
        return ""
    return f" (those on images that it was trained on do not count: {', '.join(names)})"
