"""What pydantic found wrong with a value, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_SENTENCES = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "missing": "is missing",
    "none_required": "must be empty",
    "string_type": "must be a text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(
        ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"),
        "must be a list",
    ),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"),
        "must be a mapping of keys to values",
    ),
    **dict.fromkeys(("unexpected_keyword_argument", "extra_forbidden"), "is not a known key"),
    **dict.fromkeys(("missing_argument", "missing_keyword_only_argument"), "is missing"),
}


def describe_value_problem(problem: Mapping[str, Any], what: str) -> str:
    """Return what is wrong with a value that is called `what`: `steps must be at least 1`.

    `problem` is one of the errors of a ValidationError. What a check of ours raised follows a
    colon, and so does a problem of a type that is not listed here.
    """
    sentence = _SENTENCES.get(problem["type"])
    if sentence is not None:
        limits = {
            key: f"{value:g}" if isinstance(value, float) else value
            for key, value in problem.get("ctx", {}).items()
        }
        return f"{what or 'it'} {sentence.format(**limits)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{what}: {message}" if what else message


def first_problem(error: ValidationError) -> str:
    """Return the first problem and its place: `tasks.0.rows must be a whole number`."""
    problem = error.errors()[0]
    return describe_value_problem(problem, ".".join(map(str, problem["loc"])))
