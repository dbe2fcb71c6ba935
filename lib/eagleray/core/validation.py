"""Describes a failed validation by the fields to change.

It is used for every specification, YAML file, request body, contract, package and setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from eagleray.core.display import escape_text

__all__ = ["describe_validation_fault", "first_validation_error", "validation_errors"]

_OPTION = "--"
_MAX_SHOWN = 500  # characters of a name, and of a message


def first_validation_error(error: ValidationError, *, name: Callable[[str], str] = str) -> str:
    """Return the first fault of a validation, as `validation_errors` describes it."""
    return validation_errors(error, name=name)[0]


def validation_errors(error: ValidationError, *, name: Callable[[str], str] = str) -> list[str]:
    """Return each fault of a validation in one line, as in `top_k must be …`.

    The values may come from anybody, so none is repeated unless a validator of ours does so; names
    are escaped, and long ones are cut.

    Args:
        error: Raised by pydantic.
        name: Maps the field at fault to the name that the reader knows it by; "" stands for the
            fields together.
    """
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return [describe_validation_fault(fault, name) for fault in faults]


def describe_validation_fault(fault: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """Return one fault in one line, as `validation_errors` describes it.

    Args:
        fault: One of the errors of pydantic.
        name: Maps the field at fault to the name that the reader knows it by.
    """
    field, *inner = [str(part) for part in fault["loc"]] or [""]
    known = name(field)
    if known.startswith(_OPTION):  # an option that is repeated has no numbers
        inner = [part for part in inner if not part.isdecimal()]
    place = escape_text(".".join([known, *inner])[:_MAX_SHOWN])
    message = escape_text(fault["msg"][:_MAX_SHOWN]).removesuffix(".")
    if fault["type"] == "missing":
        return f"{place} is required"
    if fault["type"] == "extra_forbidden":
        return f"{place} is not a known field"
    if message.startswith("Input should "):
        return f"{place or 'it'} must {message.removeprefix('Input should ')}"
    message = message.removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
