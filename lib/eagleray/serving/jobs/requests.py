"""Turns a request for a job into what its program reads: a specification, and words of its own.

Nothing that a caller wrote becomes a word of a command line, but for an alias and numbers that were
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.core.spec import Spec
from eagleray.scheduling.assignment import SPEC_VARIABLE
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.callers.roles import Role
from eagleray.serving.config import ServiceConfig
from eagleray.serving.jobs.body import JobBody
from eagleray.serving.jobs.rules import SPECS, check_fields, require_bounded
from eagleray.serving.jobs.starter import bounded_spec

__all__ = ["JobPlan", "plan_job"]

_FROM_VARIABLE: Final = f"env:{SPEC_VARIABLE}"
_OPTIONS: Final = {
    "train": {"alias", "find_learning_rate"},
    "tune": {"alias", "space", "num_trials", "max_concurrent", "grace_epochs"},
}
_CANDIDATE: Final = "candidate"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job of a caller does.

    Attributes:
        spec: What its program reads: the specification, or the search space of a tuning.
        words: Command line of its program.
        output: Location of its output; "" for a command without one.
        model: Version that it uses, or name of the model that it makes; "" for none.
        roles: Roles that the caller needs, each for a model.
    """

    spec: dict[str, Any]
    words: tuple[str, ...]
    output: str = ""
    model: str = ""
    roles: tuple[tuple[Role, str], ...] = ()


def plan_job(
    body: JobBody,
    config: ServiceConfig,
    policy: BatchPathPolicy,
    resolve: Callable[[str], str],
    *,
    max_workers: int,
) -> JobPlan:
    """Check a request, and return what its job does.

    Args:
        body: The request.
        config: Configuration of the service.
        policy: Locations that the caller may use.
        resolve: As for `check_fields`.
        max_workers: Number of workers that a job may have.

    Raises:
        ForbiddenError: If it names what the caller may not use.
        UserError: If a field is invalid.
    """
    _require_options(body)
    given = check_fields(body.command, body.spec, policy, resolve)
    kind = SPECS[body.command]
    of_operator: dict[str, Any] = {
        "allow_path": policy.readable,
        "allow_urls": list(config.allow_urls),
        "private_networks": list(config.private_networks),
        "workers": str(max_workers) if body.command == "predict" else None,
    }
    fields = given | {
        name: value
        for name, value in of_operator.items()
        if name in kind.model_fields and value is not None
    }
    if body.command == "tune":
        return _plan_tuning(body, fields, policy, resolve, max_workers=max_workers)
    spec = kind.make(fields)
    _require_workers(spec, max_workers)
    alias = body.options.alias
    words = ["--spec", _FROM_VARIABLE]
    words += ["--alias", alias] if alias else []
    words += ["--find-learning-rate"] if body.options.find_learning_rate else []
    words += ["--json"] if body.options.json_output else []
    model = str(getattr(spec, "name", None) or getattr(spec, "model", None) or "")
    return JobPlan(
        spec=bounded_spec(spec),
        words=tuple(words),
        output=str(getattr(spec, "output", None) or ""),
        model=model,
        roles=_roles(body, model),
    )


def _plan_tuning(
    body: JobBody,
    fixed: Mapping[str, Any],
    policy: BatchPathPolicy,
    resolve: Callable[[str], str],
    *,
    max_workers: int,
) -> JobPlan:
    from optuna.distributions import CategoricalDistribution

    from eagleray.training.tuning.search_space import default_space, make_space

    options = body.options
    if options.space is None:
        space = default_space(fixed)
    else:
        require_bounded("space", options.space)
        content = dict(options.space)
        inner = content.get("fixed") or {}
        if not isinstance(inner, dict):
            raise InputError("space: fixed must contain fields with their values.")
        content["fixed"] = check_fields("tune", inner, policy, resolve)
        space = make_space(content, fixed, where="space")
    for field, distribution in space.searched.items():
        if isinstance(distribution, CategoricalDistribution):
            for choice in distribution.choices:
                check_fields("tune", {field: choice}, policy, resolve)
    default = space.spec(space.default())
    _require_workers(default, max_workers)
    words = ["--space", _FROM_VARIABLE]
    words += ["--alias", options.alias] if options.alias else []
    numbers = {
        "--num-trials": options.num_trials,
        "--max-concurrent": min(options.max_concurrent or max_workers, max_workers),
        "--grace-epochs": options.grace_epochs,
    }
    for flag, number in numbers.items():
        words += [flag, str(number)] if number is not None else []
    words += ["--json"] if options.json_output else []
    content = bounded_spec(yaml.safe_load(space.to_yaml()))
    return JobPlan(content, tuple(words), model=default.name, roles=_roles(body, default.name))


def _require_options(body: JobBody) -> None:
    """Refuse options of other commands, and an invalid alias.

    Raises:
        InputError: If there is one.
    """
    given = {name for name in body.options.model_fields_set if getattr(body.options, name)}
    foreign = given - _OPTIONS.get(body.command, set()) - {"json_output"}
    if foreign:
        raise InputError(f"{min(foreign)} is not an option of {body.command}; leave it out.")
    if body.options.alias is not None:
        require_alias(body.options.alias)


def _require_workers(spec: Spec, max_workers: int) -> None:
    if (workers := getattr(spec, "max_workers", 1)) > max_workers:
        raise InputError(
            f"workers is {workers}, and a job of this service has at most {max_workers}; ask for "
            "fewer."
        )


def _roles(body: JobBody, model: str) -> tuple[tuple[Role, str], ...]:
    name = model.partition("/")[0].partition("@")[0]
    if body.command == "evaluate":
        return ((Role.EVALUATE, name),)
    if body.command not in ("train", "tune"):
        return ()
    promotes = body.options.alias not in (None, _CANDIDATE)
    return ((Role.PROMOTE if promotes else Role.TRAIN, name),)
