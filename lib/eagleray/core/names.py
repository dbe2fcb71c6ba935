"""Validates names of models, aliases and applications."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from eagleray.core.errors import InputError

__all__ = ["ModelName", "require_alias", "require_application_name"]

_MAX_MODEL_NAME_LENGTH = 128
_MAX_NAME_LENGTH = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)  # by MLflow
_RULE = "take letters from A to Z, digits, '_', '.' and '-', starting with a letter or a digit"


def _check_model_name(name: str) -> str:
    if not _is_valid(_NAME, name, _MAX_MODEL_NAME_LENGTH):
        raise ValueError(_message(name, "a model", _MAX_MODEL_NAME_LENGTH))
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]
"""The name of a registered model."""


def require_application_name(name: str) -> None:
    """Check the name of an application.

    Raises:
        InputError: If it is invalid; the message says what is allowed.
    """
    if not _is_valid(_NAME, name, _MAX_NAME_LENGTH):
        raise InputError(f"{_message(name, 'an application', _MAX_NAME_LENGTH)}.")


def require_alias(alias: str) -> None:
    """Check the name of an alias.

    Raises:
        InputError: If it is invalid; the message says what is allowed.
    """
    if not _is_valid(_ALIAS, alias, _MAX_NAME_LENGTH) or _RESERVED_ALIAS.fullmatch(alias):
        raise InputError(
            f"{alias!r} cannot be an alias: take letters from A to Z, digits, '_' and '-', "
            f"starting with a letter, at most {_MAX_NAME_LENGTH} of them, other than 'latest' and "
            "'v1', 'v2', …"
        )


def _is_valid(form: re.Pattern[str], name: str, max_length: int) -> bool:
    return len(name) <= max_length and form.fullmatch(name) is not None


def _message(name: str, kind: str, max_length: int) -> str:
    similar = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:max_length]
    example = f"; {similar!r} would do" if similar else ""
    return f"{name!r} cannot name {kind}: {_RULE}, at most {max_length} of them{example}"
