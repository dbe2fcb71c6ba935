"""What models, aliases and applications may be called; each refusal is one sentence."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from eagleray.core.errors import InputError

__all__ = ["ModelName", "require_alias", "require_application_name"]

_MAX_MODEL_NAME = 128
_MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)  # by MLflow
_RULE = "take letters from A to Z, digits, '_', '.' and '-', starting with a letter or a digit"


def _check_model_name(name: str) -> str:
    if not _fits(_NAME, name, _MAX_MODEL_NAME):
        raise ValueError(_refusal(name, "a model", _MAX_MODEL_NAME))
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]
"""The name of a registered model."""


def require_application_name(name: str) -> None:
    """Refuse what cannot name an application.

    Raises:
        InputError: With what a name may have.
    """
    if not _fits(_NAME, name, _MAX_NAME):
        raise InputError(f"{_refusal(name, 'an application', _MAX_NAME)}.")


def require_alias(alias: str) -> None:
    """Refuse what cannot be an alias.

    Raises:
        InputError: With what an alias may have.
    """
    if not _fits(_ALIAS, alias, _MAX_NAME) or _RESERVED_ALIAS.fullmatch(alias):
        raise InputError(
            f"{alias!r} cannot be an alias: take letters from A to Z, digits, '_' and '-', "
            f"starting with a letter, at most {_MAX_NAME} of them, other than 'latest' and "
            "'v1', 'v2', …"
        )


def _fits(form: re.Pattern[str], name: str, max_length: int) -> bool:
    return len(name) <= max_length and form.fullmatch(name) is not None


def _refusal(name: str, kind: str, max_length: int) -> str:
    similar = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:max_length]
    example = f"; {similar!r} would do" if similar else ""
    return f"{name!r} cannot name {kind}: {_RULE}, at most {max_length} of them{example}"
