"""An option for each field of a specification, made from the specification itself.

    @with_spec_options(TrainSpec, argument="data")
    def main(fields: dict[str, str], alias: …) -> None: …

`fields` holds what the user wrote, as text; whoever makes the specification reads it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["with_spec_options"]

Command = Callable[..., None]


def with_spec_options(spec: type[BaseModel], *, argument: str) -> Callable[[Command], Command]:
    """Give a command the fields of a specification as options.

    Args:
        spec: Its fields have a description, and a `panel` for the help, each.
        argument: The field that needs no flag.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            fields = {name: values.pop(name) for name in spec.model_fields}
            command({name: value for name, value in fields.items() if value is not None}, **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        options = [
            _parameter(name, field, is_argument=name == argument)
            for name, field in spec.model_fields.items()
        ]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [*options, *(item.replace(kind=kind) for item in own)]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {item.name: item.annotation for item in parameters}
        return with_options

    return decorate


def _parameter(name: str, field: FieldInfo, *, is_argument: bool) -> inspect.Parameter:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    texts: dict[str, Any] = {"help": field.description, "rich_help_panel": extra["panel"]}
    if is_argument:
        annotation: Any = Annotated[str | None, typer.Argument(metavar=name.upper(), **texts)]
    elif field.annotation is bool:
        flag = name.replace("_", "-")
        default = f"--{flag}" if field.default else f"--no-{flag}"
        texts["show_default"] = default
        annotation = Annotated[bool | None, typer.Option(f"--{flag}/--no-{flag}", **texts)]
    else:
        texts |= {"metavar": _metavar(field.annotation), "show_default": _default(field)}
        annotation = Annotated[str | None, typer.Option(**texts)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _default(field: FieldInfo) -> str | bool:
    if field.default in (None, (), "", PydanticUndefined):
        return False
    return str(field.default)


def _metavar(annotation: Any) -> str:
    """Name what an option takes: its choices, or a kind of value."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return "A,B,…"
    return {int: "INTEGER", float: "NUMBER"}.get(annotation, "TEXT")
