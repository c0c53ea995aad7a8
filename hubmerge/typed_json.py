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
