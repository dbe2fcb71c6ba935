"""Base class of specifications: frozen values that a job, a service or a request is described by.

A specification is validated once, when it is made. Each field carries its description, its default
and the panel of the help that it belongs to; the options of a command, the HTTP schema and
`docs/commands.md` are generated from these.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
)

from eagleray.core.display import escape_text
from eagleray.core.errors import InputError, UnknownNameError, UserError, nearest_names
from eagleray.core.validation import validation_errors

__all__ = [
    "AsList",
    "Names",
    "Spec",
    "Texts",
    "as_value_error",
    "join_faults",
    "names_of",
    "panel_of",
    "spec_field",
    "worker_range",
]


_MAX_FAULTS = 12  # named in one message
_MAX_SHOWN = 500  # characters of a name


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


AsList = BeforeValidator(_as_list, json_schema_input_type=str | list[str])
"""Lets one text stand for a list of one, in YAML files and in requests."""

Texts = Annotated[tuple[str, ...], AsList]


class Names(StrEnum):
    """What the text of a field, or of an option, names outside the specification."""

    INPUT = "input"
    """A file or folder that is read."""
    OUTPUT = "output"
    """A file or folder that is written."""
    EARLIER_OUTPUT = "earlier output"
    """The output of an earlier job, which is read."""
    MODEL = "model"
    """A registered version, or a folder or URI of a package that is read."""
    CODE = "code"
    """Something of Eagleray by its name, or an object of the user's own code by its import path."""


def spec_field(
    default: Any, panel: str, description: str, *, names: Names | None = None, **constraints: Any
) -> Any:
    """Declare a field of a specification.

    Args:
        default: Value of a field that is left out; `...` for a required field.
        panel: Heading of the help under which its option stands.
        description: One line for the help, the HTTP schema and the docs.
        names: What its text names outside the specification, if anything.
        constraints: Passed on to pydantic's `Field`.
    """
    extra: dict[str, Any] = {"panel": panel}
    if names is not None:
        extra["names"] = names.value
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def panel_of(extra: Any) -> str:
    """Return the panel that `spec_field` put into a field's `json_schema_extra`."""
    assert isinstance(extra, dict)
    return str(extra["panel"])


def names_of(extra: Any) -> Names | None:
    """Return what a field names, as `spec_field` put it into its `json_schema_extra`."""
    assert isinstance(extra, dict)
    return Names(extra["names"]) if "names" in extra else None


@dataclass(frozen=True)
class _Origin:
    """Names that the user knows fields by; specifications that differ in them alone are equal."""

    names: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)


class Spec(BaseModel):
    """A frozen, validated value that describes what is to be done; its numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @classmethod
    def make(
        cls, fields: Mapping[str, Any], *, where: str = "", name: Callable[[str], str] = str
    ) -> Self:
        """Make a specification from fields as users write them.

        Args:
            fields: Values by field name; text is accepted for numbers and switches.
            where: File that the fields come from, for messages.
            name: Maps a field to the name that the user knows it by, such as its option; "" stands
                for the fields together.

        Raises:
            InputError: A field is invalid or missing; the message names all such fields.
            UnknownNameError: A field does not exist, and nothing else is wrong; the message names
                the nearest ones.
        """
        prefix = f"{where}: " if where else ""
        known = {field: value for field, value in fields.items() if field in cls.model_fields}
        unknown = [str(field) for field in fields if field not in known]
        spec, faults = None, []
        try:
            spec = cls.model_validate(known)
        except ValidationError as error:
            faults = validation_errors(error, name=name)
        if spec is not None and len(unknown) == 1:
            place = where or name(unknown[0]).removesuffix(unknown[0]).removesuffix(": ")
            raise UnknownNameError(
                "field of a specification", unknown[0], cls.model_fields, where=place
            )
        faults = [*(_describe_unknown(field, cls.model_fields, name) for field in unknown), *faults]
        if spec is None or faults:
            raise InputError(f"{prefix}{join_faults(faults)}.")
        spec._origin = _Origin({field: f"{prefix}{name(field)}" for field in cls.model_fields})
        return spec

    def name_of(self, field: str) -> str:
        """Return the name that the user knows a field by: `--monitor`, or `my.yaml: monitor`."""
        return self._origin.names.get(field, field)

    @contextlib.contextmanager
    def naming(self, field: str) -> Iterator[None]:
        """Have errors of the block, which uses a field, begin with the field's name.

        Raises:
            UserError: If the block raises one.
        """
        try:
            yield
        except UserError as error:
            error.args = (f"{self.name_of(field)}: {error}",)
            raise


def _describe_unknown(field: str, known: Iterable[str], name: Callable[[str], str]) -> str:
    near = nearest_names(field, known, count=1)
    shown = escape_text(name(field)[:_MAX_SHOWN])
    return f"{shown} is not a field of a specification{f', but {near[0]} is' if near else ''}"


def join_faults(faults: Sequence[str]) -> str:
    """Join faults to one sentence without its period; after a dozen the others are counted."""
    more = len(faults) - _MAX_FAULTS
    return "; ".join([*faults[:_MAX_FAULTS], *([f"and {more} more"] if more > 0 else [])])


def worker_range(text: int | str) -> tuple[int, int]:
    """Read a number of workers, `4`, or a range, `4..16`.

    Returns:
        The smallest and the largest number of workers.

    Raises:
        ValueError: The text is neither.
    """
    first, dots, last = str(text).partition("..")
    if first.isdecimal() and (last.isdecimal() if dots else True):
        low, high = int(first), int(last or first)
        if 1 <= low <= high:
            return low, high
    raise ValueError(f"{text!r} is not a number of workers such as 4, or a range such as 4..16")


@contextlib.contextmanager
def as_value_error() -> Iterator[None]:
    """Turn an `InputError` inside a validator into a `ValueError`, which pydantic collects."""
    try:
        yield
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None
