"""Promotes a version to an alias on evidence, and rolls an alias back.

A promotion checks four things: that callers of the alias keep the same kind of model; the KPIs, on
an evaluation on the same images as one of the alias's current version; the package, against its
registered digest; and its golden images on this machine. A rollback checks the last two, as the
version was promoted before. An evaluation on images that the version learned from is no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.evaluation.kpi import Kpi, KpiResult, check_kpis
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
        InputError: If the version misses a KPI, has no evaluation on the same images as the
            alias's current version, or is of another task, labels or input; the alias does not
            move.
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
        InputError: If the candidate misses a KPI, or has no evaluation for the comparison, unless
            the promotion is forced.
    """
    if current == candidate.version:
        raise InputError(f"{candidate.reference} is {candidate.name}@{alias} already.")
    manifest = registry.manifest(candidate)
    if not force:
        registry.require_compatible(candidate.name, manifest, alias)
    differences = registry.differences(candidate.name, manifest, alias)
    if kpis is None:
        return _Decision(current, (), None, differences)
    evaluations = _evidence_of(registry, candidate)
    if current is None:
        evaluation, current_evaluation = (evaluations[0] if evaluations else None), None
    else:
        held = registry.get(candidate.name, version=current)
        evaluation, current_evaluation = _on_same_images(evaluations, _evidence_of(registry, held))
    if evaluation is None:
        if force:
            return _Decision(current, (), None, differences)
        raise InputError(_missing_evaluation(registry, candidate, alias, current))
    current_metrics = current_evaluation.metrics if current_evaluation else None
    kpi_results = check_kpis(kpis, evaluation.metrics, current_metrics)
    failed = [str(result) for result in kpi_results if not result.passed]
    if failed and not force:
        raise InputError(
            f"{candidate.reference} fails KPIs of {candidate.name}@{alias} on {evaluation.data}: "
            f"{'; '.join(failed)}."
        )
    return _Decision(current, kpi_results, evaluation, differences)


def _evidence_of(registry: Registry, version: ModelVersion) -> list[EvaluationRecord]:
    """Return the evaluations on images that the version has not learned from, newest first."""
    return [record for record in registry.evaluations(version) if record.counts]


def _on_same_images(
    own: Sequence[EvaluationRecord], others: Sequence[EvaluationRecord]
) -> tuple[EvaluationRecord | None, EvaluationRecord | None]:
    """Return the newest own evaluation on images that another version has too, and the other's."""
    by_images = {record.data_digest: record for record in others}
    for record in own:
        if record.data_digest in by_images:
            return record, by_images[record.data_digest]
    return None, None


def _missing_evaluation(
    registry: Registry, candidate: ModelVersion, alias: str, current_number: int | None
) -> str:
    """Describe in one sentence which evaluation is missing, with the command for it."""
    own = _evidence_of(registry, candidate)
    leaked = _say_leaked(registry, candidate)
    if current_number is None:
        return (
            f"{candidate.reference} has no evaluation to check the KPIs on{leaked}; run: eagleray "
            f"evaluate {candidate.reference} DATA."
        )
    current = registry.get(candidate.name, version=current_number)
    others = _evidence_of(registry, current)
    beginning = (
        f"{candidate.reference} and {current.reference}, which is {candidate.name}@{alias}, have "
        f"no evaluation on the same images{leaked}{_say_leaked(registry, current)}"
    )
    if others:
        return f"{beginning}; run: {others[0].command(candidate.reference)}"
    if own:
        return f"{beginning}; run: {own[0].command(current.reference)}"
    return (
        f"{beginning}; run both: eagleray evaluate {candidate.reference} DATA, eagleray evaluate "
        f"{current.reference} DATA."
    )


def _say_leaked(registry: Registry, version: ModelVersion) -> str:
    """Say which evaluations of a version do not count, as a part of a sentence."""
    names = [record.data for record in registry.evaluations(version) if not record.counts]
    if not names:
        return ""
    return f" (those on images that it was trained on do not count: {', '.join(names)})"
