"""The merge methods by name: what they are called, where they come from, what can be set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from hubmerge.errors import UnknownName, UsageError, raise_together
from hubmerge.merging.deltas import Deltas, Passes
from hubmerge.merging.methods import average, dare, task_arithmetic
from hubmerge.merging.params import DareParams, NoParams, TaskArithmeticParams, TiesParams
from hubmerge.merging.ties import survey_ties, ties
from hubmerge.weights.dtypes import Array


def positive_sum(weights: Sequence[float]) -> str:
    """Weights that are normalised must have a sum to divide by."""
    return "" if sum(weights) > 0 else "the weights are normalised, so their sum must be positive"


def all_positive(weights: Sequence[float]) -> str:
    """Weights of a mean over some of the experts must be positive, whichever those are."""
    return "" if min(weights) > 0 else "every weight must be positive, as it counts in a mean"


@dataclass(frozen=True)
class Method:
    """A merge method: `combine` merges the deltas of one tensor, by its parameters.

    `survey`, if there is one, walks the whole model first, as often as it must; what it returns is
    given to every `combine` (None otherwise). `weight_problem` says in half a sentence what is
    wrong with the experts' weights, or ""; without one they may be anything. `arxiv` is the paper's
    id.
    """

    name: str
    title: str
    arxiv: str
    summary: str
    params: type[BaseModel]
    combine: Callable[[Deltas, Any, Any], Array]
    survey: Callable[[Passes, Any], Any] | None = None
    weight_problem: Callable[[Sequence[float]], str] | None = None


_ALL = (
    Method(
        name="average",
        title="Weight averaging",
        arxiv="2203.05482",
        summary="The weighted mean of the experts.",
        params=NoParams,
        combine=average,
        weight_problem=positive_sum,
    ),
    Method(
        name="task_arithmetic",
        title="Task arithmetic",
        arxiv="2212.04089",
        summary="The base plus the scaled sum of what each expert changed.",
        params=TaskArithmeticParams,
        combine=task_arithmetic,
    ),
    Method(
        name="ties",
        title="TIES-Merging",
        arxiv="2306.01708",
        summary="Keep the largest changes, elect a sign for each entry, average those who agree.",
        params=TiesParams,
        combine=ties,
        survey=survey_ties,
        weight_problem=all_positive,
    ),
    Method(
        name="dare",
        title="DARE",
        arxiv="2311.03099",
        summary="Drop changes at random, rescale the rest, and add them up.",
        params=DareParams,
        combine=dare,
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def method(name: str) -> Method:
    """The method of that name; UnknownName with near names if there is none."""
    if name not in METHODS:
        raise UnknownName("merge method", name, METHODS)
    return METHODS[name]


def parse_params(method: Method, values: Mapping[str, object]) -> BaseModel:
    """Check what was set, as text or as values, and fill in defaults.

    Raises UsageError with every problem at once: names that do not exist (with near names), values
    that are not what they should be, values out of range.
    """
    try:
        return method.params.model_validate(dict(values))
    except ValidationError as error:
        problems = [_sentence(method, problem) for problem in error.errors()]
    raise_together(UsageError, problems, f"hubmerge methods {method.name} shows what can be set.")
    raise AssertionError("pydantic refused without a reason")


def _sentence(method: Method, problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        said = str(problem["msg"])
        return f"{name}={problem['input']!r}: {said[0].lower()}{said[1:]}."
    known = sorted(method.params.model_fields)
    if not known:
        return f"Unknown parameter {name!r}: {method.name} has none."
    unknown = UnknownName(f"parameter of {method.name}", name, known)
    return f"{unknown.message} {unknown.hint}"
