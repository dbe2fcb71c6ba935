"""Generates the options of a command from a specification.

    @with_spec_options(PredictSpec, argument="inputs")
    def main(fields: dict[str, Any], cluster: …) -> None:
        spec = read_spec(PredictSpec, fields)

Each field becomes an option of its name, with the field's description, default and panel. A field
that holds several values is an option that may be repeated. `fields` holds what the user wrote, as
text; the specification validates it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from eagleray.core.spec import Names, Spec, names_of, panel_of
from eagleray.io.spec_fields import S3_PANEL, SOURCES_PANEL
from eagleray.io.yaml_fields import read_fields

__all__ = [
    "REQUIRED",
    "flag",
    "given_options",
    "named_places",
    "option_name",
    "read_spec",
    "spec_of",
    "value_name",
    "with_spec_options",
]

Command = Callable[..., None]
S = TypeVar("S", bound=Spec)

REQUIRED = " Required."
"""Ends the help of an option that a specification cannot do without."""


_SPEC = "__eagleray_spec__"


def with_spec_options(
    spec: type[BaseModel], *, argument: str | tuple[str, ...]
) -> Callable[[Command], Command]:
    """Give a command the fields of a specification as options.

    Args:
        spec: Class whose fields are declared by `spec_field`.
        argument: The field, or fields, that need no flag.
    """
    arguments = (argument,) if isinstance(argument, str) else argument

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            fields = {name: values.pop(name) for name in spec.model_fields}
            # An option that may be repeated and is not given is an empty list.
            command({name: v for name, v in fields.items() if v not in (None, [])}, **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        first = [_parameter(name, spec.model_fields[name], is_argument=True) for name in arguments]
        options = [
            _parameter(name, field, is_argument=False)
            for name, field in sorted(spec.model_fields.items(), key=_is_about_reading)
            if name not in arguments
        ]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [*first, *options, *(item.replace(kind=kind) for item in own)]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {item.name: item.annotation for item in parameters}
        setattr(with_options, _SPEC, spec)
        return with_options

    return decorate


def spec_of(command: Command) -> type[Spec] | None:
    """Return the specification whose fields are options of a command; None if there is none."""
    return getattr(command, _SPEC, None)


def named_places(command: Command) -> dict[str, Names]:
    """Return what the parameters of a command name outside it, for those that do.

    Fields of a specification say it by `spec_field`, and other options in their annotation.
    """
    found = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        for item in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(item, Names):
                found[name] = item
    return found


def read_spec(kind: type[S], fields: Mapping[str, Any], *, file: str | None = None) -> S:
    """Make a specification from the options of a command, over the fields of a file if named.

    Raises:
        InputError: If a field is invalid or the file cannot be read; options are named as flags.
        UnknownNameError: If the file holds a field that does not exist.
    """
    in_file = {} if file is None else read_fields(file)

    def name(field: str) -> str:
        if not field:
            return file or ""
        if field in in_file and field not in fields:
            return f"{file}: {field}"
        return option_name(field)

    return kind.make({**in_file, **fields}, name=name)


def _is_about_reading(named: tuple[str, FieldInfo]) -> bool:
    return panel_of(named[1].json_schema_extra) in (SOURCES_PANEL, S3_PANEL)


def flag(field: str) -> str:
    """Return the flag of a field."""
    return f"--{field.replace('_', '-')}"


def option_name(field: str) -> str:
    """Return the flag of a field, for `Spec.make`; "" for the fields together."""
    return flag(field) if field else ""


def given_options(fields: Mapping[str, Any], others: Mapping[str, object]) -> list[str]:
    """Return what a user gave beside `--resume`, for the sentence that refuses it.

    Args:
        fields: Fields of the specification that are given.
        others: Values of the command's own options by flag; those of no value are not given.
    """
    given = ["DATA" if name == "data" else flag(name) for name in fields]
    return [*given, *(option for option, value in others.items() if value)]


def _parameter(name: str, field: FieldInfo, *, is_argument: bool) -> inspect.Parameter:
    kind, is_repeated = _kind_of(field.annotation)
    texts: dict[str, Any] = {
        "help": _help(field, is_repeated=is_repeated and not is_argument),
        "rich_help_panel": panel_of(field.json_schema_extra),
    }
    if is_argument:
        texts["metavar"] = name.upper().removesuffix("S") + "…" if is_repeated else name.upper()
        declared: Any = typer.Argument(show_default=False, **texts)
    elif kind is bool:
        texts["show_default"] = False if field.default is None else _switch(name, field.default)
        declared = typer.Option(f"{flag(name)}/--no-{flag(name)[2:]}", **texts)
    else:
        texts |= {"metavar": value_name(kind), "show_default": _default(field)}
        declared = typer.Option(flag(name), **texts)
    value: Any = list[str] if is_repeated else bool if kind is bool else str
    named = names_of(field.json_schema_extra)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[value | None, declared]
        if named is None
        else Annotated[value | None, declared, named],
    )


def _help(field: FieldInfo, *, is_repeated: bool) -> str:
    required = REQUIRED if field.is_required() else ""
    return f"{field.description}{' Repeatable.' if is_repeated else ''}{required}"


def _switch(name: str, default: bool) -> str:
    return flag(name) if default else f"--no-{flag(name)[2:]}"


def _default(field: FieldInfo) -> str | bool:
    if field.default in (None, (), "", PydanticUndefined):
        return False
    return str(field.default)


def _kind_of(annotation: Any) -> tuple[Any, bool]:
    """Return the type of one value of a field, and whether the field holds several."""
    if get_origin(annotation) is Annotated:
        return _kind_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        first = next(item for item in get_args(annotation) if item is not NoneType)
        return _kind_of(first)
    if get_origin(annotation) is tuple:
        return _kind_of(get_args(annotation)[0])[0], True
    return annotation, False


def value_name(kind: Any) -> str:
    """Return what an option takes, for its help: the choices, or a kind of value."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")
