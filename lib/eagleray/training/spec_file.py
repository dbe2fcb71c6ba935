"""Reads training specifications from YAML files and fields, with one-sentence errors.

read_spec("flowers.yaml", {"epochs": 5})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.validation import first_validation_error
from eagleray.io import storage
from eagleray.training.spec import TrainSpec

__all__ = ["make_spec", "read_fields", "read_spec", "unknown_fields"]


def read_spec(location: str, changes: Mapping[str, Any]) -> TrainSpec:
    """Read a specification from a YAML file.

    Args:
        location: Location of the file.
        changes: Fields that replace those of the file.

    Raises:
        InputError: If the file is missing, not YAML or not valid; the message names the field.
        UnknownNameError: If a field does not exist.
    """
    fields = read_fields(location, "specification")
    return make_spec({**fields, **changes}, where=location)


def read_fields(location: str, kind: str) -> dict[str, Any]:
    """Read a YAML file of fields.

    Args:
        location: Location of the file.
        kind: Name of what the file contains, for messages.

    Raises:
        InputError: If the file is missing or not YAML.
    """
    try:
        fields = yaml.safe_load(storage.read_bytes(location))
    except FileNotFoundError:
        raise InputError(f"There is no {kind} {location}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fault = str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{location}{place} is not YAML ({fault}).") from None
    if not isinstance(fields, dict):
        raise InputError(f"{location} must contain fields, as in `epochs: 20`.")
    return fields


def unknown_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the names of fields that a specification does not have."""
    return [str(field) for field in fields if field not in TrainSpec.model_fields]


def make_spec(fields: Mapping[str, Any], *, where: str = "") -> TrainSpec:
    """Make a specification from fields.

    Args:
        fields: Values by field.
        where: Location of the fields, for messages.

    Raises:
        InputError: If a field is missing or not valid; the message names the field.
        UnknownNameError: If a field does not exist.
    """
    prefix = f"{where}: " if where else ""
    unknown = unknown_fields(fields)
    if len(unknown) > 1:
        raise InputError(f"{prefix}A specification has no fields named {', '.join(unknown)}.")
    if unknown:
        raise UnknownNameError("field of a specification", unknown[0], TrainSpec.model_fields)
    for field in ("data", "name"):
        if fields.get(field) is None:
            raise InputError(f"The {field} is missing; give it here or in a specification file.")
    try:
        return TrainSpec.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError(f"{prefix}{first_validation_error(error)}.") from None
