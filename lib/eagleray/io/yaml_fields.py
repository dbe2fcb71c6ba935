"""Reads the fields of a specification from a YAML file or from an environment variable."""

from __future__ import annotations

import os
from typing import Any

import yaml

from eagleray.core.errors import InputError

__all__ = ["read_fields"]

_FROM_ENVIRONMENT = "env:"


class _RepeatedKeyError(Exception):
    """A mapping has a key twice; the message names it and its lines."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses repeated keys, of which YAML's own loader silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key in keys:
            known = first.setdefault((key.tag, key.value), key)
            if known is not key:
                raise _RepeatedKeyError(
                    f"line {key.start_mark.line + 1}: {key.value} is given twice, first in line "
                    f"{known.start_mark.line + 1}; remove one of them."
                )
        return node


def read_fields(location: str, kind: str = "specification") -> dict[str, Any]:
    """Read fields from a YAML file (JSON is YAML too).

    Args:
        location: Path or URI of the file, or `env:NAME` for the value of a variable.
        kind: What the file should be, for messages.

    Raises:
        InputError: If the file is not there, does not hold fields as YAML, or gives one twice.
    """
    try:
        fields = yaml.load(_read(location), _Loader)  # noqa: S506 - it is a safe one
    except _RepeatedKeyError as error:
        raise InputError(f"{location}, {error}") from None
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
        raise InputError(f"{location} holds no fields; write lines such as `name: value`.")
    return fields


def _read(location: str) -> bytes:
    if not location.startswith(_FROM_ENVIRONMENT):
        from eagleray.io import storage  # takes long to import

        return storage.read_bytes(location)
    name = location.removeprefix(_FROM_ENVIRONMENT)
    return os.environb.get(name.encode(), b"")
