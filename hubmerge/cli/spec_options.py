"""The fields of a spec as options of a command, with the names, types and help of the spec."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def options_from_spec(model: type[BaseModel]) -> list[inspect.Parameter]:
    """An option for every field; its value is None if it was not given."""
    return [_option(name, field) for name, field in model.model_fields.items()]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    annotation: Any = Annotated[
        _without_none(field.annotation) | None, typer.Option(help=_help(field))
    ]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _without_none(annotation: Any) -> Any:
    """The first type of a union that is not None, such as str of `str | list[str] | None`."""
    if get_origin(annotation) is UnionType or NoneType in get_args(annotation):
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _help(field: FieldInfo) -> str:
    """The description, followed by the default in brackets unless it ends with brackets."""
    description = field.description or ""
    if field.is_required() or description.endswith("]"):
        return description
    words = {True: "on", False: "off"}
    default = words[field.default] if isinstance(field.default, bool) else field.default
    return f"{description} [{default}]"
