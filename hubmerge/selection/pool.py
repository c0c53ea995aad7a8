"""What can be chosen from: for every task the steps of its experts, and a choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hubmerge.manifest import Point, Source, recipe_id
from hubmerge.tasks.task import Task
from hubmerge.trials import Part
from hubmerge.weights.checkpoint import Checkpoint

T = TypeVar("T")
Params = tuple[tuple[str, Any], ...]  # name and value, sorted by name


@dataclass(frozen=True)
class Candidate:
    """One step of an expert: what it is, and its own validation accuracy if known.

    `stopped` says that early stopping ended its run here; `curve` is its run up to here.
    """

    source: Source
    own: float | None = None
    stopped: bool = False
    curve: tuple[Point, ...] = field(default=(), repr=False)

    @property
    def step(self) -> int:
        return self.source.step or 0


@dataclass(frozen=True)
class Pool:
    """The base, the tasks, and for each task its candidates by rising step.

    `open` gives the weights of a candidate, which are fetched when they are first asked for.
    """

    base: Source
    base_checkpoint: Checkpoint
    tasks: tuple[Task, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    open: Callable[[Candidate], Checkpoint] = field(repr=False)

    def experts(self, choice: Choice) -> list[Candidate]:
        """The chosen candidate of each task."""
        return [its[place] for its, place in zip(self.candidates, choice.places, strict=True)]

    def sources(self, choice: Choice) -> tuple[Source, ...]:
        """The chosen candidates as a manifest names them, with their part in the merge."""
        return tuple(
            replace(expert.source, weight=weight, keep=keep, intruders=intruders)
            for expert, weight, keep, intruders in zip(
                self.experts(choice), choice.weights, choice.keep, choice.intruders, strict=True
            )
        )

    def parts(self, choice: Choice) -> tuple[Part, ...]:
        """What of the chosen candidates decides the merge, in canonical order."""
        found = (Part(s.key, s.weight, s.keep, s.intruders) for s in self.sources(choice))
        return tuple(sorted(found, key=lambda part: (part.sha, part.weight)))

    def recipe(self, choice: Choice, method: str) -> str:
        """The identity of the merge that the choice stands for."""
        return recipe_id(self.base, self.sources(choice), method, dict(choice.params))

    def steps(self, choice: Choice) -> tuple[int, ...]:
        """The chosen steps."""
        return tuple(expert.step for expert in self.experts(choice))

    def shifted(self, choice: Choice, by: int) -> Choice:
        """The choice with every candidate so many places on, as far as there are any."""
        places = (
            min(max(place + by, 0), len(its) - 1)
            for place, its in zip(choice.places, self.candidates, strict=True)
        )
        return replace(choice, places=tuple(places))

    def same_step(self, step: int) -> tuple[int, ...] | None:
        """The places of one step in all tasks, None where a task does not have it."""
        places = tuple(
            next((n for n, one in enumerate(its) if one.step == step), -1)
            for its in self.candidates
        )
        return None if -1 in places else places


@dataclass(frozen=True)
class Choice:
    """A point of the search: for each task the place of its candidate and its part; parameters."""

    places: tuple[int, ...]
    weights: tuple[float, ...]
    keep: tuple[float, ...]
    intruders: tuple[float, ...]
    params: Params

    def at(self, task: int, place: int) -> Choice:
        """The same with another candidate for one task."""
        return replace(self, places=_with(self.places, task, place))

    def weighing(self, task: int, weight: float) -> Choice:
        """The same with another weight for one task."""
        return replace(self, weights=_with(self.weights, task, weight))

    def keeping(self, task: int, keep: float) -> Choice:
        """The same with another fraction of one expert's changes kept."""
        return replace(self, keep=_with(self.keep, task, keep))

    def damping(self, task: int, intruders: float) -> Choice:
        """The same with another factor on one expert's intruder dimensions."""
        return replace(self, intruders=_with(self.intruders, task, intruders))

    def setting(self, **values: Any) -> Choice:
        """The same with other parameters."""
        return replace(self, params=as_params({**dict(self.params), **values}))


def plain_choice(places: tuple[int, ...], params: Mapping[str, Any]) -> Choice:
    """These candidates with equal weights, as they are."""
    ones = (1.0,) * len(places)
    return Choice(places, ones, ones, ones, as_params(params))


def as_params(values: Mapping[str, Any]) -> Params:
    """Parameters as a value that can be compared and hashed."""
    return tuple(sorted(values.items()))


def _first(candidates: Sequence[Candidate], step: int) -> int | None:
    return next((n for n, one in enumerate(candidates) if one.step == step), None)


def _with(values: tuple[T, ...], place: int, value: T) -> tuple[T, ...]:
    return (*values[:place], value, *values[place + 1 :])
