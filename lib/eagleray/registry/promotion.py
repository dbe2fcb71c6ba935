"""Moving an alias on evidence, and back.

A promotion asks three things: the KPIs on the figures of an evaluation, which is on the same images
as one of the current holder; the package as it was registered; and its golden images on this
machine. A rollback asks the last two: the version has been good enough before.
"""

from __future__ import annotations

import shlex
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
    """A promotion that took place.

    Attributes:
        change: As the history has it.
        kpi_results: On each KPI; none when it was forced without.
    """

    change: AliasChange
    kpi_results: tuple[KpiResult, ...]


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What a promotion is decided on, against one holder."""

    holder: int | None
    kpi_results: tuple[KpiResult, ...]
    evaluation: EvaluationRecord | None

    def evidence(self, *, forced: bool) -> dict[str, Any]:
        """For the history."""
        evaluation = self.evaluation
        return {
            "forced": forced,
            "test_digest": evaluation.data_digest if evaluation else None,
            "data": evaluation.data if evaluation else None,
            "kpis": [result.as_json() for result in self.kpi_results],
        }


def promote(
    registry: Registry,
    name: str,
    version: int,
    *,
    alias: str,
    kpis: Sequence[Kpi] | None,
    reason: str = "",
    who: str | None = None,
    force: bool = False,
) -> Promotion:
    """Point an alias to a version that is good enough.

    Args:
        registry: Of the version.
        name: Of the model.
        version: Number.
        alias: Need not exist.
        kpis: What the version must reach; None only by force.
        reason: For the history.
        who: For the history; None takes the settings' user.
        force: Whatever the figures are; it needs a `reason`.

    Raises:
        InputError: The version misses a KPI, or has no evaluation on the images that the current
            holder was evaluated on; the alias stays as it is.
        PackageError: The package is not what was registered, or fails its golden images.
    """
    require_alias(alias)
    _require_reasons(kpis, reason, force)
    candidate = registry.get(name, version=version)
    judgement = _judge(registry, candidate, alias, registry.alias_target(name, alias), kpis, force)
    _require_healthy(registry, candidate)
    with registry.history.lock(name) as locked:
        holder = locked.alias_target(alias)
        if holder != judgement.holder:  # somebody was faster; what counts is the holder now
            judgement = _judge(registry, candidate, alias, holder, kpis, force)
        change = locked.move(
            alias,
            version,
            action="promote",
            who=who or registry.settings.actor,
            reason=reason,
            evidence={"digest": candidate.digest, **judgement.evidence(forced=force)},
        )
    return Promotion(change, judgement.kpi_results)


def rollback(
    registry: Registry, name: str, *, alias: str, reason: str = "", who: str | None = None
) -> AliasChange:
    """Point an alias back to the version that held it before the current one.

    Once more goes back further: promotions pile versions up, and a rollback takes the uppermost.

    Raises:
        InputError: Nobody holds the alias, or nobody held it before.
        PackageError: That version's package is not what was registered, or fails its golden
            images; the alias stays as it is.
    """
    registry.get(name, alias=alias)
    with registry.history.lock(name) as locked:
        current = registry.get(name, alias=alias)
        earlier = locked.rollback_targets(alias)
        if not earlier:
            raise InputError(
                f"Nothing held {name}@{alias} before {current.reference}; "
                f"`eagleray models list {name}` shows what it could be pointed to."
            )
        target = registry.get(name, version=earlier[0])
        _require_healthy(registry, target)
        return locked.move(
            alias,
            target.version,
            action="rollback",
            who=who or registry.settings.actor,
            reason=reason,
            evidence={"digest": target.digest},
        )


def _require_reasons(kpis: Sequence[Kpi] | None, reason: str, force: bool) -> None:
    if kpis is None and not force:
        raise InputError(
            "What must the version reach? Name a file of KPIs with --kpi, or promote it without "
            "by --force and a --reason."
        )
    if force and not reason.strip():
        raise InputError("A promotion by --force needs a --reason, which the history keeps.")


def _require_healthy(registry: Registry, version: ModelVersion) -> None:
    """Verify the package and its answers to its golden images, on this machine.

    Raises:
        PackageError: Either is not as it was.
    """
    from eagleray.inference.predictor import Predictor

    Predictor(registry.load(version), compile_mode="never").require_healthy()


def _judge(
    registry: Registry,
    candidate: ModelVersion,
    alias: str,
    holder: int | None,
    kpis: Sequence[Kpi] | None,
    force: bool,
) -> _Judgement:
    """Compare a candidate's figures with the KPIs, and where these say so with the holder's.

    Raises:
        InputError: It misses one, or there are no figures to compare; never by force.
    """
    if holder == candidate.version:
        raise InputError(f"{candidate.reference} is {candidate.name}@{alias} already.")
    if kpis is None:
        return _Judgement(holder, (), None)
    own = registry.evaluations(candidate)
    if holder is None:
        compared, current = (own[0] if own else None), None
    else:
        compared, current = _on_the_same_images(
            own, registry.evaluations(registry.get(candidate.name, version=holder))
        )
    if compared is None:
        if force:
            return _Judgement(holder, (), None)
        raise InputError(_what_to_evaluate(registry, candidate, alias, holder))
    kpi_results = check_kpis(kpis, compared.metrics, current.metrics if current else None)
    missed = [str(result) for result in kpi_results if not result.passed]
    if missed and not force:
        raise InputError(
            f"{candidate.reference} is not good enough for {candidate.name}@{alias} on "
            f"{compared.data}: {'; '.join(missed)}."
        )
    return _Judgement(holder, kpi_results, compared)


def _on_the_same_images(
    own: Sequence[EvaluationRecord], others: Sequence[EvaluationRecord]
) -> tuple[EvaluationRecord | None, EvaluationRecord | None]:
    """Return the newest of one's own evaluations that another version has as well, and its."""
    by_images = {record.data_digest: record for record in others}
    for record in own:
        if record.data_digest in by_images:
            return record, by_images[record.data_digest]
    return None, None


def _what_to_evaluate(
    registry: Registry, candidate: ModelVersion, alias: str, holder: int | None
) -> str:
    """Say in one sentence which evaluation is missing, and the command for it."""
    own = registry.evaluations(candidate)
    if holder is None:
        return (
            f"{candidate.reference} has no evaluation to hold against the KPIs; run: eagleray "
            f"evaluate {candidate.reference} DATA."
        )
    current = registry.get(candidate.name, version=holder)
    others = registry.evaluations(current)
    beginning = (
        f"{candidate.reference} and {current.reference}, which is {candidate.name}@{alias}, have "
        "no evaluation on the same images"
    )
    if others:
        data = shlex.quote(others[0].data)
        return f"{beginning}; run: eagleray evaluate {candidate.reference} {data}"
    if own:
        data = shlex.quote(own[0].data)
        return f"{beginning}; run: eagleray evaluate {current.reference} {data}"
    return (
        f"{beginning}; run both: eagleray evaluate {candidate.reference} DATA, eagleray evaluate "
        f"{current.reference} DATA."
    )
