"""The candidates of a selection, the steps of every task's experts, and a choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hubmerge.manifest import Source, ValidationPoint, recipe_id
from hubmerge.tasks.task import Task
from hubmerge.trials import Part
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions
from hubmerge.weights.task_vector import TaskVector

T = TypeVar("T")
Params = tuple[tuple[str, Any], ...]  # name and value, sorted by name


@dataclass(frozen=True)
class Candidate:
    """One step of an expert, with its validation accuracy on its own task if known.

    `stopped_early` is true if early stopping ended the run here; `curve` is the run up to here, and
    `seed` what it was trained with, if it is recorded.
    """

    source: Source
    own_accuracy: float | None = None
    stopped_early: bool = False
    curve: tuple[ValidationPoint, ...] = field(default=(), repr=False)
    seed: int | None = None

    @property
    def step(self) -> int:
        return self.source.step or 0


@dataclass(frozen=True)
class Pool:
    """The base, the tasks, and for each task its candidates by rising step.

    `open` returns the checkpoint of a candidate, which is fetched on first use, and `content_key`
    what seeds its masks. `options` decide where candidates and base differ.
    """

    base: Source
    base_checkpoint: Checkpoint
    tasks: tuple[Task, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    open: Callable[[Candidate], Checkpoint] = field(repr=False)
    options: MatchOptions = DEFAULT_OPTIONS
    content_key: Callable[[Candidate], str] = field(
        default=lambda candidate: candidate.source.content_key, repr=False
    )

    def experts(self, choice: Choice) -> list[Candidate]:
        """Return the chosen candidate of each task."""
        pairs = zip(self.candidates, choice.indices, strict=True)
        return [candidates[index] for candidates, index in pairs]

    def sources(self, choice: Choice) -> tuple[Source, ...]:
        """Return the chosen candidates as a manifest lists them, with their share in the merge.

        Those of weight 0 are left out of it.
        """
        return tuple(source for source in self.all_sources(choice) if source.weight)

    def all_sources(self, choice: Choice) -> tuple[Source, ...]:
        """Return the candidates of all tasks, those of weight 0 included."""
        return tuple(
            replace(expert.source, weight=weight, keep=keep, intruders=intruders)
            for expert, weight, keep, intruders in zip(
                self.experts(choice), choice.weights, choice.keep, choice.intruders, strict=True
            )
        )

    def parts(self, choice: Choice) -> tuple[Part, ...]:
        """Return the commits and shares that determine the merge, in canonical order."""
        return _parts(self.sources(choice))

    def all_parts(self, choice: Choice) -> tuple[Part, ...]:
        """Return the parts of all tasks, those of weight 0 included."""
        return _parts(self.all_sources(choice))

    def recipe(self, choice: Choice, method: str) -> str:
        """Return the recipe id of the merge."""
        params = {**dict(choice.params), **self.options.chosen}
        return recipe_id(self.base, self.sources(choice), method, params)

    def task_vector(self, candidate: Candidate) -> TaskVector:
        """Return the change of a candidate, which is fetched if needed."""
        return TaskVector(self.base_checkpoint, self.open(candidate), self.options)

    def steps(self, choice: Choice) -> tuple[int, ...]:
        """Return the chosen steps."""
        return tuple(expert.step for expert in self.experts(choice))

    def shift(self, choice: Choice, by: int) -> Choice:
        """Return the choice with every candidate moved `by` positions, clipped to the ends."""
        indices = (
            min(max(index + by, 0), len(candidates) - 1)
            for index, candidates in zip(choice.indices, self.candidates, strict=True)
        )
        return replace(choice, indices=tuple(indices))

    def common_step(self, step: int) -> tuple[int, ...] | None:
        """Return the index of one step in every task, None if a task does not have it."""
        indices = tuple(
            next((n for n, candidate in enumerate(candidates) if candidate.step == step), -1)
            for candidates in self.candidates
        )
        return None if -1 in indices else indices


@dataclass(frozen=True)
class Choice:
    """A point of the search: for each task the index and share of its candidate, and parameters."""

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    keep: tuple[float, ...]
    intruders: tuple[float, ...]
    params: Params

    def with_candidate(self, task: int, index: int) -> Choice:
        """Return a copy with another candidate for one task."""
        return replace(self, indices=_replaced(self.indices, task, index))

    def with_weight(self, task: int, weight: float) -> Choice:
        """Return a copy with another weight for one task; 0 leaves its expert out."""
        return replace(self, weights=_replaced(self.weights, task, weight))

    def with_keep(self, task: int, keep: float) -> Choice:
        """Return a copy that keeps another fraction of one expert's changes."""
        return replace(self, keep=_replaced(self.keep, task, keep))

    def with_intruders(self, task: int, intruders: float) -> Choice:
        """Return a copy with another factor on one expert's intruder dimensions."""
        return replace(self, intruders=_replaced(self.intruders, task, intruders))

    def with_params(self, **values: Any) -> Choice:
        """Return a copy with other method parameters."""
        return replace(self, params=as_params({**dict(self.params), **values}))


def _parts(sources: Iterable[Source]) -> tuple[Part, ...]:
    parts = (Part(s.key, s.weight, s.keep, s.intruders) for s in sources)
    return tuple(sorted(parts, key=lambda part: (part.sha, part.weight)))


def plain_choice(indices: tuple[int, ...], params: Mapping[str, Any]) -> Choice:
    """Return a choice of these candidates with equal weights, neither trimmed nor damped."""
    ones = (1.0,) * len(indices)
    return Choice(indices, ones, ones, ones, as_params(params))


def as_params(values: Mapping[str, Any]) -> Params:
    """Return parameters as a hashable value."""
    return tuple(sorted(values.items()))


def _replaced(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])
