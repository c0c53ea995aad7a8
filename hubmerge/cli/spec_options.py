"""The fields of a spec as options of a command: names, types, help and defaults are said once."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def options_of(model: type[BaseModel]) -> list[inspect.Parameter]:
    """One optional option for every field; what was not typed is None."""
    return [_option(name, field) for name, field in model.model_fields.items()]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    said = typer.Option(help=_help(field))
    kind: Any = Annotated[_plain(field.annotation) | None, said]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _plain(kind: Any) -> Any:
    """The type without None, and lists of words apart: those have an option of one word."""
    if get_origin(kind) is UnionType or NoneType in get_args(kind):
        return next(inner for inner in get_args(kind) if inner is not NoneType)
    return kind


def _help(field: FieldInfo) -> str:
    """The description, with the default unless it tells one itself."""
    said = field.description or ""
    if field.is_required() or said.endswith("]"):
        return said
    words = {True: "on", False: "off"}
    default = words[field.default] if isinstance(field.default, bool) else field.default
    return f"{said} [{default}]"
