"""JSON text that must fit a type."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")


def validate_json(type_: type[T], data: str | bytes, strict: bool = True) -> T:
    """The value of a type that a JSON text describes; raises pydantic's ValidationError.

    Strict: "9" is not accepted as an integer, nor 1 as a string.
    """
    adapter: TypeAdapter[T] = _adapter(cast(Any, type_))
    return adapter.validate_json(data, strict=strict)


@cache
def _adapter(type_: type[Any]) -> TypeAdapter[Any]:
    # To build one takes longer than to read a file with it, and a journal has many lines.
    return TypeAdapter(type_)


def to_line(value: Any) -> str:
    """A value as one line of JSON, from which `from_line` makes an equal one.

    Fields of specs that were not set are left out, as some kinds of specs refuse them.
    """
    return _adapter(cast(Any, type(value))).dump_json(value, exclude_unset=True).decode()


def from_line(type_: type[T], line: str) -> T:
    """The value that `to_line` wrote."""
    # Not strict: a spec that looks at its fields first would get lists where it needs tuples.
    return validate_json(type_, line, strict=False)
