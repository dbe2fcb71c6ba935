"""The search space of a tuning: fixed fields, and a distribution for each searched field.

    fixed:
      architecture: resnet20
      epochs: 12
    search:
      learning_rate: {log_uniform: [1e-4, 1e-1]}
      optimizer: {choice: [adamw, sgd]}
      randaugment: {int: [0, 12]}

Fields have the names and the limits of `TrainSpec`. The default of a searched field is the
specification's own, or the nearest value of its distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.spec import panel_of
from eagleray.io.spec_fields import S3_PANEL
from eagleray.io.yaml_fields import read_fields
from eagleray.tasks import task_class
from eagleray.training.spec import DATA, RUN, TrainSpec

__all__ = ["SearchSpace", "default_space", "read_space"]

Scalar = bool | int | float | str | None
Distribution: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution

# Beside some panels.
_NOT_SEARCHED = ("name", "epochs", "calibrate", "thresholds", "monitor", "mode")
_KINDS = ("choice", "uniform", "log_uniform", "int")
_INSIDE = 0.382  # fraction of a range: a place that is not a whole number


@dataclass(frozen=True)
class SearchSpace:
    """Fixed and searched fields of a tuning.

    Attributes:
        fixed: Values of the fixed fields.
        searched: Distributions of the searched fields; no field is in both.
    """

    fixed: Mapping[str, Any]
    searched: Mapping[str, Distribution]

    def default(self) -> dict[str, Scalar]:
        """Return the defaults of the searched fields."""
        return {name: _default(name, one) for name, one in self.searched.items()}

    def spec(self, values: Mapping[str, Any]) -> TrainSpec:
        """Return the specification with values for the searched fields.

        Raises:
            InputError: If they do not go together.
        """
        return TrainSpec.make({**self.fixed, **values})

    def to_yaml(self) -> str:
        """Return the space as the content of its file."""
        content = {
            "fixed": dict(self.fixed),
            "search": {name: _as_yaml(one) for name, one in self.searched.items()},
        }
        return str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def _default(name: str, distribution: Distribution) -> Any:
    value = TrainSpec.model_fields[name].default
    if isinstance(distribution, CategoricalDistribution):
        return value if value in distribution.choices else distribution.choices[0]
    low, high = distribution.low, distribution.high
    return low if value is None else min(max(value, low), high)


def _as_yaml(distribution: Distribution) -> dict[str, Any]:
    if isinstance(distribution, CategoricalDistribution):
        return {"choice": list(distribution.choices)}
    if isinstance(distribution, IntDistribution):
        return {"int": [distribution.low, distribution.high]}
    kind = "log_uniform" if distribution.log else "uniform"
    return {kind: [distribution.low, distribution.high]}


def default_space(fields: Mapping[str, Any]) -> SearchSpace:
    """Return the space that is searched by default: optimisation and mild augmentation.

    Args:
        fields: Fixed fields.

    Raises:
        UserError: If they are not valid.
    """
    searched: dict[str, Distribution] = {
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "optimizer": CategoricalDistribution(("adamw", "sgd")),
        "weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
        "batch_size": CategoricalDistribution((32, 64, 128)),
        "random_translation": FloatDistribution(0.0, 0.15),
        "horizontal_flip": CategoricalDistribution((False, True)),
    }
    task = fields.get("task", TrainSpec.model_fields["task"].default)
    if "label_smoothing" in task_class(task).training_options:
        searched["label_smoothing"] = FloatDistribution(0.0, 0.2)
    return _make_space(fields, searched, "")


def read_space(location: str, fields: Mapping[str, Any]) -> SearchSpace:
    """Read a search space from a YAML file.

    Args:
        location: Location of the file.
        fields: Fixed fields, which replace those of the file.

    Raises:
        UserError: If the file is missing, not YAML or not valid; the message names the field.
    """
    content = read_fields(location, "search space")
    for section in content:
        if section not in ("fixed", "search"):
            raise InputError(f"{location}: {section!r} is neither `fixed` nor `search`.")
    fixed, search = (_section(content, name, location) for name in ("fixed", "search"))
    both = next((name for name in search if name in fixed), None)
    if both is not None:
        raise InputError(f"{location}: {both} is fixed and searched; remove it from one of them.")
    if not search:
        raise InputError(
            f"{location} searches nothing; name a field, as in "
            "`search: {learning_rate: {log_uniform: [1e-4, 1e-1]}}`."
        )
    for name in search:
        _require_searchable(name, location)
    searched = {
        name: _read_distribution(written, f"{location}: search.{name}")
        for name, written in search.items()
    }
    return _make_space({**fixed, **fields}, searched, f"{location}: ")


def _section(content: Mapping[str, Any], name: str, location: str) -> dict[str, Any]:
    fields = content.get(name) or {}
    if not isinstance(fields, dict):
        raise InputError(f"{location}: {name} must contain fields with their values.")
    return fields


def _read_distribution(written: Any, place: str) -> Distribution:
    if not isinstance(written, dict) or len(written) != 1 or next(iter(written)) not in _KINDS:
        raise InputError(f"{place} must be one of {', '.join(_KINDS)}, as in `choice: [a, b]`.")
    ((kind, values),) = written.items()
    if not isinstance(values, list):
        raise InputError(f"{place}: {kind} takes a list, as in `{kind}: [1, 2]`.")
    if kind == "choice":
        return _read_choice(values, place)
    try:
        # YAML takes 1e-4, which has no point, for text.
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(f"{place}: {kind} takes two numbers, as in `{kind}: [1, 2]`.") from None
    shown = f"{kind} [{low:g}, {high:g}]"
    if not low < high:
        raise InputError(f"{place}: {shown} is empty; the lower bound comes first.")
    if math.isinf(low) or math.isinf(high):
        raise InputError(f"{place}: {shown} must have finite bounds.")
    if kind == "log_uniform" and low <= 0:
        raise InputError(f"{place}: {shown} must have a lower bound above 0.")
    if kind != "int":
        return FloatDistribution(low, high, log=kind == "log_uniform")
    if not (low.is_integer() and high.is_integer()):
        raise InputError(f"{place}: int takes integers, not [{low:g}, {high:g}].")
    return IntDistribution(int(low), int(high))


def _read_choice(values: list[Any], place: str) -> CategoricalDistribution:
    if not values:
        raise InputError(f"{place}: choice is empty; list the values to choose from.")
    for value in values:
        if not isinstance(value, Scalar):
            raise InputError(f"{place}: {value!r} is not a single value.")
    return CategoricalDistribution(values)


def _require_searchable(name: str, location: str) -> None:
    fields = TrainSpec.model_fields
    if name not in fields:
        raise UnknownNameError("field of a specification", str(name), list(fields), where=location)
    if name in _NOT_SEARCHED or panel_of(fields[name].json_schema_extra) in (DATA, RUN, S3_PANEL):
        raise InputError(
            f"{location}: search.{name}: all trials have the same {name}; put it under "
            "`fixed`, or give it as an option."
        )


def _make_space(
    fixed: Mapping[str, Any], searched: Mapping[str, Distribution], prefix: str
) -> SearchSpace:
    """Return a space of checked values; a field that is fixed is not searched.

    Raises:
        UserError: If a field does not take a value of its distribution.
    """
    checked = {
        name: _check_values(name, distribution, fixed, prefix)
        for name, distribution in searched.items()
        if name not in fixed
    }
    if not checked:
        raise InputError(f"{prefix}nothing is left to search: every field of the space is given.")
    space = SearchSpace(fixed, checked)
    TrainSpec.make({**fixed, **space.default()}, where=prefix.removesuffix(": "))
    return space


def _check_values(
    name: str, distribution: Distribution, fixed: Mapping[str, Any], prefix: str
) -> Distribution:
    """Check values of a distribution, and convert choices to the field's type (`1e-4`)."""
    if isinstance(distribution, CategoricalDistribution):
        values = [_check_value(name, value, fixed, prefix) for value in distribution.choices]
        if all(isinstance(value, Scalar) for value in values):
            return CategoricalDistribution(tuple(dict.fromkeys(values)))
        return distribution  # Optuna takes no tuples: those fields keep their text
    low, high = distribution.low, distribution.high
    inside = [] if isinstance(distribution, IntDistribution) else [low + (high - low) * _INSIDE]
    for value in (low, *inside, high):
        _check_value(name, value, fixed, prefix)
    return distribution


def _check_value(name: str, value: Scalar, fixed: Mapping[str, Any], prefix: str) -> Any:
    """Return a value as the field has it; its combination with others is not checked."""
    try:
        spec = TrainSpec.model_validate({"data": ".", "name": "n", **fixed, name: value})
    except ValidationError as error:
        for fault in error.errors():
            if fault["loc"][:1] == (name,):
                raise InputError(f"{prefix}search.{name}: {value!r}: {fault['msg']}.") from None
        return value
    return getattr(spec, name)
