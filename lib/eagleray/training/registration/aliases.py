"""Points an alias to the version that a run has registered, if it deserves it.

An alias that the user names always moves. Otherwise `candidate` moves, and only to a version that
learned and is better than the one it points to, on the same test images.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.core.errors import InputError
from eagleray.registry.registry import ModelVersion
from eagleray.training.registration.rivals import Contender, NotComparableError

__all__ = ["CANDIDATE", "AliasDecision", "move_alias"]

CANDIDATE = "candidate"
"""The alias of the best version so far, which moves without being named."""


@dataclass(frozen=True)
class AliasDecision:
    """Whether an alias moved to a new version, and why.

    Attributes:
        alias: The alias.
        moved: Whether it points to the new version.
        reason: One sentence.
        evidence: The figures of the decision, for the history.
    """

    alias: str
    moved: bool
    reason: str
    evidence: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the decision as JSON values."""
        return {"alias": self.alias, "moved": self.moved, "reason": self.reason}


def move_alias(
    contender: Contender, version: ModelVersion, did_not_learn: Sequence[str]
) -> tuple[ModelVersion, AliasDecision]:
    """Point the job's alias to a new version, or say why it stays.

    A run that is resumed after its registration does not move an alias twice: one that was moved
    since stays where it is.

    Args:
        contender: The new model.
        version: Its version.
        did_not_learn: Sentences that say why the run did not learn.

    Returns:
        The version with its aliases, and the decision.
    """
    job = contender.job
    registry, alias = job.registry, job.alias or CANDIDATE
    reference = f"{version.name}@{alias}"
    moved = f"{reference} points to {version.reference}"
    if registry.was_registered_as(version, alias):
        return version, AliasDecision(
            alias, True, f"{moved}, since an earlier attempt of this run.", {}
        )
    if job.alias is not None:
        decision = AliasDecision(alias, True, f"{moved}, as the command names this alias.", {})
    else:
        decision = _decide(contender, version, did_not_learn)
    if decision.moved:
        try:
            registry.set_alias(
                version.name,
                alias,
                version.version,
                action="register",
                reason="" if job.alias else decision.reason,
                force=job.force,
                evidence=decision.evidence,
            )
        except InputError as error:  # it points to another kind of model since the run began
            decision = AliasDecision(alias, False, str(error), {})
    return registry.get(version.name, version=version.version), decision


def _decide(
    contender: Contender, version: ModelVersion, did_not_learn: Sequence[str]
) -> AliasDecision:
    """Decide whether `candidate` moves to a new version."""
    registry, name = contender.job.registry, version.name
    tested, judge = contender.tested, contender.judge
    reference = f"{name}@{CANDIDATE}"
    number = registry.alias_target(name, CANDIDATE)
    current = None if number is None else registry.get(name, version=number)
    moved = f"{reference} points to {version.reference}"
    place = "unset" if current is None else f"at {current.reference}"

    def stays(why: str, *, force: bool = False) -> AliasDecision:
        words = ["eagleray", "models", "alias", name, CANDIDATE, str(version.version)]
        command = shlex.join([*words, *["--force"] * force])
        sentence = f"{reference} stays {place}: {why}; to move it, run: {command}"
        return AliasDecision(CANDIDATE, False, sentence, {})

    differences = registry.differences(name, tested.package, CANDIDATE)
    if did_not_learn:
        return stays(f"the run of {version.reference} did not learn", force=bool(differences))
    if current is None:
        return AliasDecision(
            CANDIDATE,
            True,
            f"{moved}; it pointed to none before.",
            {},
        )
    if differences:
        what = "; ".join(differences)
        return stays(f"{version.reference} is another kind of model ({what})", force=True)
    try:
        found = contender.compare_with(current)
    except NotComparableError as error:
        return stays(f"{current.reference} does not compare with {version.reference}, as {error}")
    evidence = {
        "digest": version.digest,
        "test_digest": tested.record.data_digest,
        "metric": judge.name,
        "value": found.value,
        "current": found.other_value,
        "images": found.num_images,
    }
    figures = (
        f"on the same {found.num_images:,} test images {judge.name} of {version.reference} is "
        f"{found.value:.4f} and that of {current.reference} {found.other_value:.4f}"
    )
    if not judge.is_better(found.value, found.other_value):
        return stays(figures)
    return AliasDecision(CANDIDATE, True, f"{moved}: {figures}.", evidence)
