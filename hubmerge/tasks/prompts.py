"""Render the templates and expressions of a task with the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Undefined

from hubmerge.errors import DataError
from hubmerge.specs.prompt_language import (
    MAX_LENGTH,
    compiled_expression,
    compiled_template,
    error_reason,
)

# The characters of a string field that prompts of ranking tasks use, as in promptsource (arXiv
# 2202.01279), whose prompts the paper's text tasks use.
MAX_FIELD_CHARACTERS = 2048


def render_template(
    template: str, row: Mapping[str, Any], max_field: int | None = MAX_FIELD_CHARACTERS
) -> str:
    """The template rendered with a row's columns, to the last character.

    Every string in the row is cut to `max_field` characters; None means no cut. Raises UsageError
    for a template that does not compile, DataError if it cannot be rendered with this row.
    """
    pieces, length = [], 0
    rendered = compiled_template(template).generate(_template_values(row, max_field))
    try:
        for piece in rendered:
            pieces.append(piece)
            length += len(piece)
            if length > MAX_LENGTH:
                raise DataError(f"it has more than {MAX_LENGTH} characters")
    except DataError:
        raise
    except Exception as error:  # an undefined name, a wrong type, the sandbox, recursion
        raise DataError(error_reason(error)) from error
    return "".join(pieces)


def evaluate_expression(
    text: str, row: Mapping[str, Any], max_field: int | None = MAX_FIELD_CHARACTERS
) -> Any:
    """The value of an expression over a row's columns; raises the same as `render_template`."""
    compiled = compiled_expression(text)
    try:
        value = compiled(_template_values(row, max_field))
        if isinstance(value, Undefined):
            str(value)  # raises an error with the undefined name
    except Exception as error:  # the same as in `render_template`
        raise DataError(error_reason(error)) from error
    return value


def _template_values(row: Mapping[str, Any], field: int | None) -> dict[str, Any]:
    cut = {name: _truncate(value, field) for name, value in row.items()}
    return {**cut, "row": cut}


def _truncate(value: Any, field: int | None) -> Any:
    if isinstance(value, str):
        return value[:field]
    if isinstance(value, list):
        return [_truncate(inner, field) for inner in value]
    if isinstance(value, dict):
        return {name: _truncate(inner, field) for name, inner in value.items()}
    return value
