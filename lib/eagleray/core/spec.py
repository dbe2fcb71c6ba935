"""Base class of specifications: frozen values that a job, a service or a request is described by.

A specification is validated once, when it is made. Each field carries its description, its default
and the panel of the help that it belongs to; the options of a command, the HTTP schema and
`docs/commands.md` are generated from these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.validation import first_validation_error

__all__ = ["AsList", "Spec", "Texts", "as_value_error", "panel_of", "spec_field", "worker_range"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


AsList = BeforeValidator(_as_list, json_schema_input_type=str | list[str])
"""Lets one text stand for a list of one, in YAML files and in requests."""

Texts = Annotated[tuple[str, ...], AsList]


def spec_field(default: Any, panel: str, description: str, **constraints: Any) -> Any:
    """Declare a field of a specification.

    Args:
        default: Value of a field that is left out; `...` for a required field.
        panel: Heading of the help under which its option stands.
        description: One line for the help, the HTTP schema and the docs.
        constraints: Passed on to pydantic's `Field`.
    """
    return Field(
        default, description=description, json_schema_extra={"panel": panel}, **constraints
    )


def panel_of(extra: Any) -> str:
    """Return the panel that `spec_field` put into a field's `json_schema_extra`."""
    assert isinstance(extra, dict)
    return str(extra["panel"])


class Spec(BaseModel):
    """A frozen, validated value that describes what is to be done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def make(
        cls, fields: Mapping[str, Any], *, where: str = "", name: Callable[[str], str] = str
    ) -> Self:
        """Make a specification from fields as users write them.

        Args:
            fields: Values by field name; text is accepted for numbers and switches.
            where: File that the fields come from, for messages.
            name: Maps a field to the name that the user knows it by, such as its option.

        Raises:
            InputError: A field is invalid or missing; the message names it.
            UnknownNameError: A field does not exist; the message names the nearest ones.
        """
        prefix = f"{where}: " if where else ""
        unknown = [str(field) for field in fields if field not in cls.model_fields]
        if len(unknown) > 1:
            raise InputError(f"{prefix}A specification has no fields named {', '.join(unknown)}.")
        if unknown:
            raise UnknownNameError("field of a specification", unknown[0], cls.model_fields)
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise InputError(f"{prefix}{first_validation_error(error, name=name)}.") from None


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
