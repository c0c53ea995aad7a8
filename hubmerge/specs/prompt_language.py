"""The language of prompts: a small, closed part of jinja2 over the columns of one row.

A task's YAML may come from anywhere, so what it says can neither leave the sandbox nor run away:
no assignments, macros or loops within loops; no operation whose result could be of any length.
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

LONGEST = 1_000_000  # characters of a rendered prompt, and of any string on the way to it
_SOURCE = 20_000  # characters of a template
_RANGE = 1_000
_STATEMENTS = (nodes.Template, nodes.Output, nodes.If, nodes.For)
_PLAIN = (str, list, tuple, dict, LoopContext)
# Methods that pad or repeat; filters do what a prompt needs of them, within bounds.
_UNBOUNDED = {
    *("center", "encode", "expandtabs", "format", "format_map", "join", "ljust", "replace"),
    *("rjust", "translate", "zfill"),
}
_FILTERS = {
    *("abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "reverse", "round", "select"),
    *("sort", "string", "sum", "title", "trim", "truncate", "unique", "upper"),
}
# What a prompt may name besides the columns; `row[...]` reads a column whose name is no word.
BUILT_IN = frozenset({"range", "row"})


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which only plain data have attributes and strings are not multiplied."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" or not numbers:
            raise SecurityError(f"`{operator}` is not for prompts")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not isinstance(obj, _PLAIN) or attr in _UNBOUNDED:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _range(*bounds: int) -> range:
    if len(numbers := range(*bounds)) > _RANGE:
        raise SecurityError(f"a range of more than {_RANGE} is not for prompts")
    return numbers


def _join(values: Iterable[Any], between: str = "") -> str:
    parts = [str(value) for value in values]
    _bounded(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _replace(text: str, old: str, new: str) -> str:
    _bounded(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _bounded(length: int) -> None:
    if length > LONGEST:
        raise SecurityError(f"a string of more than {LONGEST} characters is not for prompts")


def _environment() -> _Sandbox:
    # A missing value is an empty text, not the word None.
    sandbox = _Sandbox(
        undefined=StrictUndefined, finalize=lambda value: "" if value is None else value
    )
    known = {name: work for name, work in sandbox.filters.items() if name in _FILTERS}
    sandbox.filters = {**known, "join": _join, "replace": _replace}
    sandbox.globals = {"range": _range}
    return sandbox


_ENVIRONMENT = _environment()


@lru_cache(maxsize=256)
def compiled_template(text: str) -> Template:
    """Text with gaps, such as "{{ question }}?"; raises UsageError if it does not compile."""
    try:
        _check(_parsed(text))
        return _ENVIRONMENT.from_string(text)
    except Exception as error:  # jinja2, Python's compiler and their stacks say no in many ways
        raise _refusal(text, error) from error


@lru_cache(maxsize=256)
def compiled_expression(text: str) -> TemplateExpression:
    """An expression, such as "[option1, option2]"; raises UsageError if it does not compile."""
    try:
        _check(_parsed(_as_template(text)))
        return _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    except Exception as error:  # as above
        raise _refusal(text, error) from error


def check_template(text: str) -> str:
    """The text itself, if it compiles."""
    compiled_template(text)
    return text


def check_expression(text: str) -> str:
    """The text itself, if it compiles."""
    compiled_expression(text)
    return text


def names_of_template(text: str) -> set[str]:
    """What a template that compiles names: columns, and perhaps what is built in."""
    return find_undeclared_variables(_parsed(text))


def names_of_expression(text: str) -> set[str]:
    """What an expression that compiles names: columns, and perhaps what is built in."""
    return names_of_template(_as_template(text))


def _as_template(expression: str) -> str:
    return "{{ " + expression + " }}"


def _parsed(text: str) -> nodes.Template:
    if len(text) > _SOURCE:
        raise SecurityError(f"it has more than {_SOURCE} characters")
    return _ENVIRONMENT.parse(text)


def _check(tree: nodes.Template) -> None:
    for statement in tree.find_all(nodes.Stmt):
        if not isinstance(statement, _STATEMENTS):
            name = type(statement).__name__.lower()
            raise SecurityError(f"statements of kind {name!r} are not for prompts")
        if isinstance(statement, nodes.For) and _loops_inside(statement):
            raise SecurityError("a loop within a loop is not for prompts")
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _UNBOUNDED:
            raise SecurityError(
                f"`.{call.node.attr}()` is not for prompts (`| join` and `| replace` are)"
            )


def _loops_inside(loop: nodes.For) -> bool:
    return loop.recursive or next(loop.find_all(nodes.For), None) is not None


def _refusal(text: str, error: Exception) -> UsageError:
    deep = isinstance(error, (RecursionError, MemoryError))
    said = "it is nested too deeply" if deep else reason(error)
    return UsageError(f"{printable(text[:60])!r} is not jinja2 for prompts: {said}.")


def reason(error: Exception) -> str:
    """What jinja2 has against a text, as one line."""
    said = error.message if isinstance(error, TemplateError) else str(error)
    return printable(" ".join((said or type(error).__name__).split()))[:300].rstrip(".")
