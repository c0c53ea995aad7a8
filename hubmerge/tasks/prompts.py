"""A row's columns in the words of a task: templates and expressions, rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Undefined

from hubmerge.errors import DataError
from hubmerge.specs.prompt_language import LONGEST, compiled_expression, compiled_template, reason

# As promptsource does it (arXiv 2202.01279), whose prompts the paper's text tasks use.
FIELD = 2048  # characters of a string field that a prompt of a ranking task sees


def render(template: str, row: Mapping[str, Any], field: int | None = FIELD) -> str:
    """The template filled with a row's columns, without white space at its ends.

    Of every string in the row `field` characters are seen, all of them for None. Raises UsageError
    for a template that does not compile, DataError where it cannot be filled from this row.
    """
    pieces, length = [], 0
    filled = compiled_template(template).generate(_said(row, field))
    try:
        for piece in filled:
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST:
                raise DataError(f"it grows beyond {LONGEST} characters")
    except DataError:
        raise
    except Exception as error:  # an undefined name, a wrong type, the sandbox, Python's stack
        raise DataError(reason(error)) from error
    return "".join(pieces).strip()


def expression(text: str, row: Mapping[str, Any], field: int | None = FIELD) -> Any:
    """The value of an expression over a row's columns; raises as `render` does."""
    compiled = compiled_expression(text)
    try:
        value = compiled(_said(row, field))
        if isinstance(value, Undefined):
            str(value)  # raises, and says which name it is
    except Exception as error:  # as above
        raise DataError(reason(error)) from error
    return value


def _said(row: Mapping[str, Any], field: int | None) -> dict[str, Any]:
    cut = {name: _cut(value, field) for name, value in row.items()}
    return {**cut, "row": cut}


def _cut(value: Any, field: int | None) -> Any:
    if isinstance(value, str):
        return value[:field]
    if isinstance(value, list):
        return [_cut(inner, field) for inner in value]
    if isinstance(value, dict):
        return {name: _cut(inner, field) for name, inner in value.items()}
    return value
