"""What a tuning may change: a search space, one YAML file.

    fixed:
      architecture: resnet20
      epochs: 12
    search:
      learning_rate: {log_uniform: [1e-4, 1e-1]}
      optimizer: {choice: [adamw, sgd]}
      randaugment: {int: [0, 12]}

A field has the name, and the limits, that it has in a `TrainSpec`. The default is what the
specification has by itself, or what the space has nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.tasks import task_class
from eagleray.training.spec import DATA, RUN, TrainSpec
from eagleray.training.spec_file import make_spec, read_fields

__all__ = ["Choice", "Domain", "Range", "SearchSpace", "default_space", "read_space"]

Scalar = bool | int | float | str | None

# What does not change how well a network learns what it is given.
_NOT_SEARCHED = ("name", "epochs", "calibrate", "thresholds")
_KINDS = ("choice", "uniform", "log_uniform", "int")
_INSIDE = 0.382  # of a range: a place that is no round number


@dataclass(frozen=True)
class Choice:
    """One of some values.

    Attributes:
        values: At least one, none of them twice.
    """

    values: tuple[Scalar, ...]

    def nearest(self, value: Any) -> Scalar:
        """Return the value itself where it is one of them, else the first."""
        return value if value in self.values else self.values[0]

    def probes(self) -> tuple[Scalar, ...]:
        """Return values that the field must take for all of them to be possible."""
        return self.values

    def distribution(self) -> Any:
        """Return it as Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def as_yaml(self) -> dict[str, Any]:
        """Return it as it is written."""
        return {"choice": list(self.values)}


@dataclass(frozen=True)
class Range:
    """A number between two others, both included.

    Attributes:
        kind: `uniform`, `log_uniform` or `int`.
        low: Below `high`.
        high: The other end.
    """

    kind: str
    low: float
    high: float

    def nearest(self, value: Any) -> Scalar:
        """Return the number itself where it is inside, else the nearest end; None is the low."""
        return self.low if value is None else min(max(value, self.low), self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Return values that the field must take for all of them to be possible."""
        if self.kind == "int":
            return self.low, self.high
        return self.low, self.low + (self.high - self.low) * _INSIDE, self.high

    def distribution(self) -> Any:
        """Return it as Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.kind == "log_uniform")

    def as_yaml(self) -> dict[str, Any]:
        """Return it as it is written."""
        return {self.kind: [self.low, self.high]}


Domain = Choice | Range


@dataclass(frozen=True)
class SearchSpace:
    """Fields that are as they are, and fields that are searched.

    Attributes:
        fixed: Values by field.
        searched: Domains by field; no field is in both.
    """

    fixed: Mapping[str, Any]
    searched: Mapping[str, Domain]

    def default(self) -> dict[str, Scalar]:
        """Return what the searched fields are when nobody searches."""
        fields = TrainSpec.model_fields
        return {
            name: domain.nearest(fields[name].default) for name, domain in self.searched.items()
        }

    def spec(self, values: Mapping[str, Any]) -> TrainSpec:
        """Return the specification with some values for the searched fields.

        Raises:
            InputError: They do not go together.
        """
        return make_spec({**self.fixed, **values})

    def distributions(self) -> dict[str, Any]:
        """Return the searched fields as Optuna has them."""
        return {name: domain.distribution() for name, domain in self.searched.items()}

    def to_yaml(self) -> str:
        """Return the file that says the same."""
        content = {
            "fixed": dict(self.fixed),
            "search": {name: domain.as_yaml() for name, domain in self.searched.items()},
        }
        return str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def default_space(fields: Mapping[str, Any]) -> SearchSpace:
    """Return what is searched when nobody says what: how it learns, and mild augmentation.

    Args:
        fields: Fixed.

    Raises:
        UserError: They are no specification.
    """
    domains: dict[str, Domain] = {
        "learning_rate": Range("log_uniform", 1e-4, 1e-1),
        "optimizer": Choice(("adamw", "sgd")),
        "weight_decay": Range("log_uniform", 1e-5, 1e-2),
        "batch_size": Choice((32, 64, 128)),
        "random_translation": Range("uniform", 0.0, 0.15),
        "horizontal_flip": Choice((False, True)),
    }
    if "label_smoothing" in task_class(fields.get("task", "multiclass")).training_options:
        domains["label_smoothing"] = Range("uniform", 0.0, 0.2)
    return _checked(fields, {name: domains[name] for name in domains if name not in fields}, "")


def read_space(location: str, fields: Mapping[str, Any]) -> SearchSpace:
    """Read a search space from a YAML file.

    Args:
        location: Of the file.
        fields: Fixed, whatever the file says of them.

    Raises:
        UserError: It is not there, is no YAML, or asks for what cannot be; with the field.
    """
    content = read_fields(location, "search space")
    for part in content:
        if part not in ("fixed", "search"):
            raise InputError(f"{location}: {part!r} is neither `fixed` nor `search`.")
    fixed, search = (_part(content, part, location) for part in ("fixed", "search"))
    both = next((name for name in search if name in fixed), None)
    if both is not None:
        raise InputError(f"{location}: {both} is fixed and searched; take it out of one of them.")
    if not search:
        raise InputError(
            f"{location} searches nothing; name a field, as in "
            "`search: {learning_rate: {log_uniform: [1e-4, 1e-1]}}`."
        )
    for name in search:
        _require_searchable(name, location)
    domains = {name: _domain(name, written, location) for name, written in search.items()}
    wanted = {name: domain for name, domain in domains.items() if name not in fields}
    return _checked({**fixed, **fields}, wanted, location)


def _part(content: Mapping[str, Any], part: str, location: str) -> dict[str, Any]:
    fields = content.get(part) or {}
    if not isinstance(fields, dict):
        raise InputError(f"{location}: {part} must hold fields with their values.")
    return fields


def _domain(name: str, written: Any, location: str) -> Domain:
    """Read what is written of a field."""
    place = f"{location}: search.{name}"
    if not isinstance(written, dict) or len(written) != 1 or next(iter(written)) not in _KINDS:
        raise InputError(f"{place} must be one of {', '.join(_KINDS)}, as in `choice: [a, b]`.")
    ((kind, values),) = written.items()
    if not isinstance(values, list):
        raise InputError(f"{place}: {kind} takes a list, as in `{kind}: [1, 2]`.")
    if kind == "choice":
        return _choice(values, place)
    return _range(kind, values, place)


def _choice(values: list[Any], place: str) -> Choice:
    if not values:
        raise InputError(f"{place}: choice is empty; list the values to choose from.")
    for value in values:
        if not isinstance(value, Scalar):
            raise InputError(f"{place}: {value!r} is no single value; write several as text: a,b.")
    return Choice(tuple(values))


def _range(kind: str, values: list[Any], place: str) -> Range:
    try:
        # YAML takes 1e-4, which has no point, for text.
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(f"{place}: {kind} takes two numbers, as in `{kind}: [1, 2]`.") from None
    if not low < high:
        raise InputError(
            f"{place}: {kind} [{low:g}, {high:g}] is empty; the lower end comes first."
        )
    if math.isinf(low) or math.isinf(high):
        raise InputError(f"{place}: {kind} ends somewhere; infinity is no end.")
    if kind == "log_uniform" and low <= 0:
        raise InputError(f"{place}: log_uniform begins above 0, not at {low:g}.")
    if kind != "int":
        return Range(kind, low, high)
    if not (low.is_integer() and high.is_integer()):
        raise InputError(f"{place}: int takes whole numbers, not [{low:g}, {high:g}].")
    return Range(kind, int(low), int(high))


def _checked(fixed: Mapping[str, Any], domains: Mapping[str, Domain], where: str) -> SearchSpace:
    """Return a space whose fixed fields, and each searched one, are what a specification takes.

    Raises:
        UserError: One of them is not.
    """
    place = f"{where}: " if where else ""
    if not domains:
        raise InputError(f"{place}nothing is left to search: every field of the space is given.")
    searched = {name: _typed(name, domain, fixed, place) for name, domain in domains.items()}
    space = SearchSpace(fixed, searched)
    space.spec(space.default())
    return space


def _require_searchable(name: str, location: str) -> None:
    fields = TrainSpec.model_fields
    if name not in fields:
        raise UnknownNameError("field of a specification", str(name), list(fields))
    extra = fields[name].json_schema_extra
    assert isinstance(extra, dict)
    if name in _NOT_SEARCHED or extra["panel"] in (DATA, RUN):
        raise InputError(
            f"{location}: search.{name}: all trials have the same {name}; put it under "
            "`fixed`, or give it as an option."
        )


def _typed(name: str, domain: Domain, fixed: Mapping[str, Any], place: str) -> Domain:
    """Return a domain with its values as the specification has them: `1e-4` is a number then."""
    probes = tuple(_value(name, probe, fixed, place) for probe in domain.probes())
    if isinstance(domain, Range):
        return domain
    values = tuple(dict.fromkeys(probes))
    if not all(isinstance(value, Scalar) for value in values):
        # What a specification makes of text (a tuple) is no value that Optuna can choose.
        return domain
    return Choice(values)


def _value(name: str, value: Scalar, fixed: Mapping[str, Any], place: str) -> Any:
    """Return a value as the field has it; whether it goes with others is another question."""
    try:
        spec = TrainSpec.model_validate({"data": ".", "name": "n", **fixed, name: value})
    except ValidationError as error:
        for fault in error.errors():
            if fault["loc"][:1] == (name,):
                raise InputError(f"{place}search.{name}: {value!r}: {fault['msg']}.") from None
        return value
    return getattr(spec, name)
