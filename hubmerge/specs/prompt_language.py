"""The language of prompts: a small subset of jinja2 over the columns of one row.

A task's YAML may come from anywhere, so a prompt can neither leave the sandbox nor use unlimited
time or memory: no assignments, macros or nested loops, and no operation with a result of unlimited
length.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.environment import TemplateExpression
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hubmerge.errors import UsageError
from hubmerge.refs import printable

MAX_LENGTH = 1_000_000  # characters of a rendered prompt, and of any intermediate string
_MAX_SOURCE = 20_000  # characters of a template
_MAX_RANGE = 1_000
_ALLOWED_STATEMENTS = (nodes.Template, nodes.Output, nodes.If, nodes.For)
_PLAIN_TYPES = (str, list, tuple, dict, LoopContext)
# Methods that pad or repeat; the allowed filters do the same within limits.
_UNBOUNDED_METHODS = {
    *("center", "encode", "expandtabs", "format", "format_map", "join", "ljust", "replace"),
    *("rjust", "translate", "zfill"),
}
_ALLOWED_FILTERS = {
    *("abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "reverse", "round", "select"),
    *("sort", "string", "sum", "title", "trim", "truncate", "unique", "upper"),
}
# Names in prompts other than columns; `row[...]` reads a column whose name is not an identifier.
BUILT_IN = frozenset({"range", "row"})


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, restricted to attributes of plain data and to arithmetic on numbers."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" or not numbers:
            raise SecurityError(f"`{operator}` is not allowed in prompts")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not isinstance(obj, _PLAIN_TYPES) or attr in _UNBOUNDED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _range(*bounds: int) -> range:
    if len(numbers := range(*bounds)) > _MAX_RANGE:
        raise SecurityError(f"a range of more than {_MAX_RANGE} is not allowed in prompts")
    return numbers


def _join(values: Iterable[Any], separator: str = "") -> str:
    parts = [str(value) for value in values]
    _check_length(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _replace(text: str, old: str, new: str) -> str:
    _check_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"a string of more than {MAX_LENGTH} characters is not allowed")


def _environment() -> _Sandbox:
    # A missing value is rendered as an empty text, not as the word None.
    # A template is rendered to its last character: a chat template may end with a line feed.
    sandbox = _Sandbox(
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
        keep_trailing_newline=True,
    )
    allowed = {name: call for name, call in sandbox.filters.items() if name in _ALLOWED_FILTERS}
    sandbox.filters = {**allowed, "join": _join, "replace": _replace}
    sandbox.globals = {"range": _range}
    return sandbox


_ENVIRONMENT = _environment()


@lru_cache(maxsize=256)
def compiled_template(text: str) -> Template:
    """Compile a template, such as "{{ question }}?"; raises UsageError for invalid ones."""
    try:
        _check_allowed(_parse(text))
        return _ENVIRONMENT.from_string(text)
    except Exception as error:  # jinja2 and Python's compiler raise many kinds of exceptions
        raise _usage_error(text, error) from error


@lru_cache(maxsize=256)
def compiled_expression(text: str) -> TemplateExpression:
    """Compile an expression, such as "[option1, option2]"; raises UsageError for invalid ones."""
    try:
        _check_allowed(_parse(_as_template(text)))
        return _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    except Exception as error:  # as above
        raise _usage_error(text, error) from error


def check_template(text: str) -> str:
    """Return the text if it is a valid template; raises UsageError."""
    compiled_template(text)
    return text


def check_expression(text: str) -> str:
    """Return the text if it is a valid expression; raises UsageError."""
    compiled_expression(text)
    return text


def template_names(text: str) -> set[str]:
    """The names in a valid template: columns and built-in names."""
    return find_undeclared_variables(_parse(text))


def expression_names(text: str) -> set[str]:
    """The names in a valid expression: columns and built-in names."""
    return template_names(_as_template(text))


def _as_template(expression: str) -> str:
    return "{{ " + expression + " }}"


def _parse(text: str) -> nodes.Template:
    if len(text) > _MAX_SOURCE:
        raise SecurityError(f"it has more than {_MAX_SOURCE} characters")
    return _ENVIRONMENT.parse(text)


def _check_allowed(tree: nodes.Template) -> None:
    for statement in tree.find_all(nodes.Stmt):
        if not isinstance(statement, _ALLOWED_STATEMENTS):
            name = type(statement).__name__.lower()
            raise SecurityError(f"statements of kind {name!r} are not allowed in prompts")
        if isinstance(statement, nodes.For) and _has_nested_loop(statement):
            raise SecurityError("nested loops are not allowed in prompts")
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _UNBOUNDED_METHODS:
            raise SecurityError(
                f"`.{call.node.attr}()` is not allowed in prompts (`| join` and `| replace` are)"
            )


def _has_nested_loop(loop: nodes.For) -> bool:
    return loop.recursive or next(loop.find_all(nodes.For), None) is not None


def _usage_error(text: str, error: Exception) -> UsageError:
    too_deep = isinstance(error, (RecursionError, MemoryError))
    reason = "it is nested too deeply" if too_deep else error_reason(error)
    return UsageError(f"{printable(text[:60])!r} is not a valid prompt: {reason}.")


def error_reason(error: Exception) -> str:
    """The message of an error from jinja2 on one line."""
    message = error.message if isinstance(error, TemplateError) else str(error)
    return printable(" ".join((message or type(error).__name__).split()))[:300].rstrip(".")
