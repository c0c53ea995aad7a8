"""The merge methods by name: their titles, papers, and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from hubmerge.errors import UnknownName, UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.merging.built_in import BUILT_IN
from hubmerge.merging.method import Method as Method
from hubmerge.refs import printable
from hubmerge.validation_errors import describe_value_problem

ENTRY_POINT_GROUP = "hubmerge.methods"


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


METHODS = MethodRegistry(BUILT_IN)


def method(name: str) -> Method:
    """The method of that name; raises UnknownName with similar names if there is none."""
    if name not in METHODS:
        raise UnknownName("merge method", name, METHODS)
    return METHODS[name]


def check_count(method: Method, count: int) -> None:
    """Raise UsageError if the method cannot merge this number of experts."""
    if problem := method.count_problem(count):
        raise UsageError(problem, "`hubmerge methods` lists the others.")


def parse_params(method: Method, values: Mapping[str, object]) -> BaseModel:
    """Validate parameters, given as text or as values, and fill in defaults.

    Raises UsageError with every problem at once: unknown names (with similar names), values of the
    wrong type, values out of range.
    """
    try:
        return method.params.model_validate(dict(values))
    except ValidationError as error:
        problems = [describe_problem(method, problem) for problem in error.errors()]
    raise_together(UsageError, problems, f"`hubmerge methods {method.name}` lists its parameters.")
    raise AssertionError("pydantic refused without a reason")


def describe_problem(method: Method, problem: Mapping[str, Any]) -> str:
    """A sentence for one of pydantic's errors on a method's parameters."""
    name = ".".join(str(part) for part in problem["loc"])
    if not name:  # of several parameters together
        return f"{describe_value_problem(problem, method.name)}."
    if problem["type"] != "extra_forbidden":
        given = f"{name}={problem['input']!r}"
        return f"{describe_value_problem(problem, given)}."
    known = sorted(method.params.model_fields)
    if not known:
        return f"Unknown parameter {name!r}: {method.name} has none."
    unknown = UnknownName(f"parameter of {method.name}", name, known)
    return f"{unknown.message} {unknown.hint}"
