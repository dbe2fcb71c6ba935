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

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from eagleray.core.errors import InputError, UnknownNameError, UserError
from eagleray.core.spec import join_faults, panel_of
from eagleray.io.spec_fields import S3_PANEL, SOURCES_PANEL
from eagleray.io.yaml_fields import read_fields
from eagleray.tasks import task_class
from eagleray.training.spec import DATA, RUN, TrainSpec

__all__ = ["SearchSpace", "default_space", "make_space", "read_space"]

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
        names: Names that the user knows fields by, for messages; "" stands for all together.
    """

    fixed: Mapping[str, Any]
    searched: Mapping[str, Distribution]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def default(self) -> dict[str, Scalar]:
        """Return the defaults of the searched fields."""
        return {name: _default(name, one) for name, one in self.searched.items()}

    def spec(self, values: Mapping[str, Any]) -> TrainSpec:
        """Return the specification with values for the searched fields.

        Raises:
            InputError: If they do not go together.
        """
        return TrainSpec.make(
            {**self.fixed, **values}, name=lambda field: self.names.get(field, field)
        )

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


def default_space(fields: Mapping[str, Any], *, name: Callable[[str], str] = str) -> SearchSpace:
    """Return the space that is searched by default: optimisation and mild augmentation.

    Args:
        fields: Fixed fields.
        name: Maps a field to the name that the user knows it by, such as its option.

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
    faults = _Faults()
    space = _make_space(fields, searched, name, faults)
    faults.require_none()
    return space


def read_space(
    location: str, fields: Mapping[str, Any], *, name: Callable[[str], str] = str
) -> SearchSpace:
    """Read a search space from a YAML file.

    Args:
        location: Location of the file.
        fields: Fixed fields, which replace those of the file.
        name: Maps one of `fields` to the name that the user knows it by, such as its option.

    Raises:
        UserError: If the file is missing, not YAML or not valid; the message names all fields at
            fault.
    """
    return make_space(read_fields(location, "search space"), fields, where=location, name=name)


def make_space(
    content: Mapping[str, Any],
    fields: Mapping[str, Any],
    *,
    where: str,
    name: Callable[[str], str] = str,
) -> SearchSpace:
    """Make a search space from the content of its file.

    Args:
        content: The sections `fixed` and `search`.
        fields: Fixed fields, which replace those of the content.
        where: Location of the file, for messages.
        name: As for `read_space`.

    Raises:
        UserError: If it is not valid; the message names all fields at fault.
    """
    location = where
    faults = _Faults(f"{location}: ")
    for section in content:
        if section not in ("fixed", "search"):
            faults.add(InputError(f"{location}: {section!r} is neither `fixed` nor `search`."))
    fixed, search = (_section(content, part, location, faults) for part in ("fixed", "search"))
    for field in search:
        if field in fixed:
            sentence = f"{field} is fixed and searched; remove it from one of them."
            faults.add(InputError(f"{location}: {sentence}"))
    if not content.get("search"):
        faults.add(
            InputError(
                f"{location} searches nothing; name a field, as in "
                "`search: {learning_rate: {log_uniform: [1e-4, 1e-1]}}`."
            )
        )
    searched = {}
    for field, written in search.items():
        with faults.collecting():
            _require_searchable(field, location)
            searched[field] = _read_distribution(written, f"{location}: search.{field}")

    def name_of(field: str) -> str:
        if field in fields:
            return name(field)
        return f"{location}: {field}" if field else location

    given = {field: value for field, value in fixed.items() if field not in search}
    space = _make_space({**given, **fields}, searched, name_of, faults)
    faults.require_none()
    return space


class _Faults:
    """Collects what is wrong with a space, to report all of it at once.

    Attributes:
        prefix: Beginning of every sentence.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._errors: list[UserError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, error: UserError) -> None:
        """Add a fault."""
        self._errors.append(error)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Add an error of the block, and go on."""
        try:
            yield
        except UserError as error:
            self.add(error)

    def require_none(self) -> None:
        """Raise the fault, or one error with all of them.

        Raises:
            UserError: If there is a fault.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            texts = [str(error).rstrip(".").replace(self.prefix, "") for error in self._errors]
            raise InputError(f"{self.prefix}{join_faults(texts)}.")


def _section(
    content: Mapping[str, Any], name: str, location: str, faults: _Faults
) -> dict[str, Any]:
    fields = content.get(name) or {}
    if not isinstance(fields, dict):
        faults.add(InputError(f"{location}: {name} must contain fields with their values."))
        return {}
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
    panel = panel_of(fields[name].json_schema_extra)
    if name in _NOT_SEARCHED or panel in (DATA, RUN, SOURCES_PANEL, S3_PANEL):
        raise InputError(
            f"{location}: search.{name}: all trials have the same {name}; put it under "
            "`fixed`, or give it as an option."
        )


def _make_space(
    fixed: Mapping[str, Any],
    searched: Mapping[str, Distribution],
    name: Callable[[str], str],
    faults: _Faults,
) -> SearchSpace:
    """Return a space of checked values; a field that is fixed is not searched.

    Values at fault are collected, and are not in the space.
    """
    checked: dict[str, Distribution] = {}
    for field, distribution in searched.items():
        if field not in fixed:
            with faults.collecting():
                checked[field] = _check_values(field, distribution, fixed, faults.prefix)
    if searched and all(field in fixed for field in searched):
        sentence = "nothing is left to search: every field of the space is given."
        faults.add(InputError(f"{faults.prefix}{sentence}"))
    names = {field: name(field) for field in ("", *TrainSpec.model_fields, *fixed)}
    space = SearchSpace(fixed, checked, names)
    default = space.default()
    # Whether fields go together depends on those at fault.
    if not faults or _has_invalid_field({**fixed, **default}):
        with faults.collecting():
            space.spec(default)
    return space


def _has_invalid_field(fields: Mapping[str, Any]) -> bool:
    try:
        TrainSpec.model_validate(fields)
    except ValidationError as error:
        return any(fault["loc"] for fault in error.errors())
    return False


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
