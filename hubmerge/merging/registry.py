"""The merge methods by name: their titles, papers, and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from hubmerge.errors import UnknownName, UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.merging.deltas import DeltaPasses, Deltas
from hubmerge.merging.methods import average, dare, task_arithmetic
from hubmerge.merging.params import DareParams, NoParams, TaskArithmeticParams, TiesParams
from hubmerge.merging.ties import settle_ties, survey_ties, ties
from hubmerge.refs import printable
from hubmerge.weights.dtypes import Array

ENTRY_POINT_GROUP = "hubmerge.methods"


def require_positive_sum(weights: Sequence[float]) -> str:
    """The problem with weights that are normalised: their sum must be positive."""
    return "" if sum(weights) > 0 else "the weights are normalised, so their sum must be positive"


def require_all_positive(weights: Sequence[float]) -> str:
    """The problem with weights of a mean over some of the experts: each must be positive."""
    return "" if min(weights) > 0 else "every weight must be positive, as it counts in a mean"


@dataclass(frozen=True)
class Method:
    """A merge method: `combine(deltas, params, survey)` merges the deltas of one tensor.

    `survey(passes, params)`, if there is one, makes passes over the whole model first; its result
    is the third argument of every `combine` (None otherwise). `by_parts(params)` is whether
    `combine` may be called with parts of a tensor, by several threads. After a merge by parts,
    `settle(survey)` returns the final survey and the parts, by tensor and first entry, that must be
    merged again with it. `weight_problem` returns half a
    sentence about what is wrong with the experts' weights, or ""; without it any weights are valid.
    `arxiv` is the paper's id.
    """

    name: str
    title: str
    arxiv: str
    summary: str
    params: type[BaseModel]
    combine: Callable[[Deltas, Any, Any], Array]
    survey: Callable[[DeltaPasses, Any], Any] | None = None
    by_parts: Callable[[Any], bool] = lambda params: False
    settle: Callable[[Any], tuple[Any, list[tuple[str, int]]]] | None = None
    weight_problem: Callable[[Sequence[float]], str] | None = None


_BUILT_IN = (
    Method(
        name="average",
        title="Weight averaging",
        arxiv="2203.05482",
        summary="The weighted mean of the experts.",
        params=NoParams,
        combine=average,
        by_parts=lambda params: True,
        weight_problem=require_positive_sum,
    ),
    Method(
        name="task_arithmetic",
        title="Task arithmetic",
        arxiv="2212.04089",
        summary="The base plus the scaled sum of what each expert changed.",
        params=TaskArithmeticParams,
        combine=task_arithmetic,
        by_parts=lambda params: True,
    ),
    Method(
        name="ties",
        title="TIES-Merging",
        arxiv="2306.01708",
        summary="Keep the largest changes, elect a sign for each entry, average those who agree.",
        params=TiesParams,
        combine=ties,
        survey=survey_ties,
        by_parts=lambda params: params.trim == "model",
        settle=settle_ties,
        weight_problem=require_all_positive,
    ),
    Method(
        name="dare",
        title="DARE",
        arxiv="2311.03099",
        summary="Drop changes at random, rescale the rest, and add them up.",
        params=DareParams,
        combine=dare,
        by_parts=lambda params: params.rescale == "expected",
    ),
)


class MethodRegistry(Mapping[str, Method]):
    """Merge methods by name: the built-in ones, then those of installed distributions.

    A distribution adds a method as an entry point of the group `hubmerge.methods` that has the
    method's name and points to a `Method`. It is loaded when it is looked up. Looking up one that
    cannot be used raises UsageError; iteration skips it, and `problems` has the reason.
    """

    def __init__(self, built_in: Sequence[Method]) -> None:
        self._built_in = {method.name: method for method in built_in}
        self._loaded: dict[str, Method] = {}

    def __getitem__(self, name: str) -> Method:
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._loaded:
            self._loaded[name] = _load_method(self._entry_points[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from (name for name in self._entry_points if not self._load_problem(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each method of a distribution that cannot be used."""
        return (*self._conflicts, *filter(None, map(self._load_problem, self._entry_points)))

    @property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return self._installed[0]

    @property
    def _conflicts(self) -> list[str]:
        return self._installed[1]

    @cached_property
    def _installed(self) -> tuple[dict[str, EntryPoint], list[str]]:
        """The entry points by name, and a sentence for each whose name is taken."""
        usable: dict[str, EntryPoint] = {}
        conflicts = []
        for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=_distribution):
            if entry.name in usable:
                owner = f"the distribution {_distribution(usable[entry.name])}"
            elif entry.name in (*self._built_in, MOE):
                owner = "hubmerge"
            else:
                usable[entry.name] = entry
                continue
            conflicts.append(f"{_describe_entry(entry)} is ignored: {owner} has that name.")
        return usable, conflicts

    def _load_problem(self, name: str) -> str:
        try:
            self[name]
        except UsageError as error:
            return error.message
        return ""


def _load_method(entry: EntryPoint) -> Method:
    try:
        loaded = entry.load()
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}")[:200]
        raise _unusable(entry, f"cannot be loaded: {reason}") from error
    if not isinstance(loaded, Method):
        raise _unusable(entry, "is not a hubmerge.merging.registry.Method")
    if loaded.name != entry.name:
        raise _unusable(entry, f"has another name in its Method: {printable(loaded.name)!r}")
    return loaded


def _unusable(entry: EntryPoint, reason: str) -> UsageError:
    hint = f"Update or uninstall {_distribution(entry)}."
    return UsageError(f"{_describe_entry(entry)} {reason}.", hint)


def _describe_entry(entry: EntryPoint) -> str:
    return f"Merge method {printable(entry.name)!r} of the distribution {_distribution(entry)}"


def _distribution(entry: EntryPoint) -> str:
    """The name of the distribution, or the entry's value if its metadata is missing."""
    try:
        name = entry.dist.name if entry.dist else ""
    except (KeyError, TypeError):
        name = ""
    return printable(name or entry.value)


METHODS = MethodRegistry(_BUILT_IN)


def method(name: str) -> Method:
    """The method of that name; raises UnknownName with similar names if there is none."""
    if name not in METHODS:
        raise UnknownName("merge method", name, METHODS)
    return METHODS[name]


def parse_params(method: Method, values: Mapping[str, object]) -> BaseModel:
    """Validate parameters, given as text or as values, and fill in defaults.

    Raises UsageError with every problem at once: unknown names (with similar names), values of the
    wrong type, values out of range.
    """
    try:
        return method.params.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe_problem(method, problem) for problem in error.errors()]
    raise_together(UsageError, problems, f"`hubmerge methods {method.name}` lists its parameters.")
    raise AssertionError("pydantic refused without a reason")


def _describe_problem(method: Method, problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        text = str(problem["msg"])
        return f"{name}={problem['input']!r}: {text[0].lower()}{text[1:]}."
    known = sorted(method.params.model_fields)
    if not known:
        return f"Unknown parameter {name!r}: {method.name} has none."
    unknown = UnknownName(f"parameter of {method.name}", name, known)
    return f"{unknown.message} {unknown.hint}"
