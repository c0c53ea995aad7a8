"""The candidates of a selection, the steps of every task's experts, and a choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from hubmerge.recipe_ids import recipe_id
from hubmerge.source import Source
from hubmerge.tasks.task import Task
from hubmerge.training_curve import Norms, ValidationPoint
from hubmerge.trials import Part
from hubmerge.weights.averaged import average_checkpoints, averaged_key
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.layer_names import count_layers
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions
from hubmerge.weights.task_vector import TaskVector

T = TypeVar("T")
_LEAST_LOSS = 0.01  # of a step that has learned its rows by heart
Params = tuple[tuple[str, Any], ...]  # name and value, sorted by name


@dataclass(frozen=True)
class Candidate:
    """One step of an expert, with its validation accuracy on its own task if known.

    `stopped_early` is true if early stopping ended the run here; `curve` is the run up to here, and
    `seed` what it was trained with, if it is recorded.
    With `members`, it is the mean of several steps of one expert, of which this is the last.
    `norms` are those in its manifest, None if they are not known without fetching it.
    """

    source: Source
    own_accuracy: float | None = None
    stopped_early: bool = False
    curve: tuple[ValidationPoint, ...] = field(default=(), repr=False)
    norms: Norms | None = field(default=None, repr=False)
    seed: int | None = None
    members: tuple[Candidate, ...] = field(default=(), repr=False)

    @property
    def key(self) -> str:
        """The key of its source, or those of all steps that are averaged."""
        if not self.members:
            return self.source.key
        sources = [member.source for member in self.members]
        return "+".join(
            source.key if source.weight == 1 else f"{source.weight!r}x{source.key}"
            for source in sources
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each of `members` in their mean, all 1 if it is plain."""
        return tuple(member.source.weight for member in self.members)

    @property
    def loss(self) -> float | None:
        """The training loss that was recorded at its step, None without one."""
        last = self.curve[-1] if self.curve else None
        return last.loss if last is not None and last.step == self.step else None

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
        """Return the chosen candidate of each task, or the mean of those up to it."""
        return [
            self._expert(task, index, choice.span(task), choice.by_loss)
            for task, index in enumerate(choice.indices)
        ]

    def _expert(self, task: int, index: int, span: int, by_loss: bool) -> Candidate:
        """Return the mean of up to `span` steps of one repository, of which the last is given."""
        last = self.candidates[task][index]
        if span == 1:  # as almost always, and a search asks thousands of times
            return last
        before = [
            c for c in self.candidates[task][: index + 1] if c.source.name == last.source.name
        ]
        members = tuple(before[-span:])
        if len(members) == 1:
            return last
        members = weighted_by_loss(members) if by_loss else members
        return replace(last, members=members, norms=None)

    def sources(self, choice: Choice) -> tuple[Source, ...]:
        """Return the merged candidates as a manifest lists them, with their share in the merge."""
        return tuple(source for source in self.all_sources(choice) if source.weight != 0)

    def all_sources(self, choice: Choice) -> tuple[Source, ...]:
        """Return `sources` with those that are left out, of weight 0: one for each task."""
        shares = zip(choice.weights, choice.keep, choice.intruders, strict=True)
        return tuple(
            replace(
                expert.source,
                weight=weight,
                keep=keep,
                intruders=intruders,
                averaged=tuple(member.source for member in expert.members),
            )
            for expert, (weight, keep, intruders) in zip(self.experts(choice), shares, strict=True)
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
        expert = self.open(candidate)
        if candidate.members:
            members = [self.open(member) for member in candidate.members]
            expert = average_checkpoints(
                self.base_checkpoint, members, self.options, candidate.shares
            )
        return TaskVector(self.base_checkpoint, expert, self.options)

    def seed_key(self, candidate: Candidate) -> str:
        """Return what seeds the masks of a candidate and orders the sums."""
        if candidate.members:
            keys = [self.content_key(member) for member in candidate.members]
            return averaged_key(keys, candidate.shares)
        return self.content_key(candidate)

    def steps(self, choice: Choice) -> tuple[int, ...]:
        """Return the chosen steps."""
        return tuple(expert.step for expert in self.experts(choice))

    def lateness(self, choice: Choice) -> float:
        """Return the sum of log2 of the chosen steps, which decides between equals."""
        chosen = zip(self._log_steps, choice.indices, strict=True)
        return math.fsum(logs[index] for logs, index in chosen)

    @cached_property
    def _log_steps(self) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(math.log2(max(candidate.step, 1)) for candidate in candidates)
            for candidates in self.candidates
        )

    @property
    def layer_count(self) -> int:
        """The number of layers of the base; of a model with several towers, of the deepest."""
        return max(count_layers(self.base_checkpoint.index).values(), default=0)

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

    def common_steps(self) -> tuple[tuple[int, ...], ...]:
        """Return the indices of every step that all tasks have, earliest first."""
        steps = {candidate.step for candidates in self.candidates for candidate in candidates}
        found = (self.common_step(step) for step in sorted(steps))
        return tuple(indices for indices in found if indices is not None)


@dataclass(frozen=True)
class Choice:
    """A point of the search: for each task the index and share of its candidate, and parameters.

    An expert of weight 0 is left out. Where `spans`, by default all 1, has a number above 1, so
    many steps up to the index are averaged, with `by_loss` by their training loss.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    keep: tuple[float, ...]
    intruders: tuple[float, ...]
    params: Params
    spans: tuple[int, ...] = ()
    by_loss: bool = False

    def span(self, task: int) -> int:
        """Return how many steps of a task's expert are averaged."""
        return self.spans[task] if self.spans else 1

    def with_candidate(self, task: int, index: int) -> Choice:
        """Return a copy with another candidate for one task."""
        return self._copy(_replaced(self.indices, task, index), self.weights, self.params)

    def with_weight(self, task: int, weight: float) -> Choice:
        """Return a copy with another weight for one task; 0 leaves its expert out."""
        return self._copy(self.indices, _replaced(self.weights, task, weight), self.params)

    def with_window(self, task: int, index: int, span: int) -> Choice:
        """Return a copy with the mean of `span` steps up to an index for one task."""
        spans = _replaced(self.spans or (1,) * len(self.indices), task, span)
        spans = () if set(spans) == {1} else spans
        return replace(self, indices=_replaced(self.indices, task, index), spans=spans)

    def with_keep(self, task: int, keep: float) -> Choice:
        """Return a copy that keeps another fraction of one expert's changes."""
        return replace(self, keep=_replaced(self.keep, task, keep))

    def with_intruders(self, task: int, intruders: float) -> Choice:
        """Return a copy with another factor on one expert's intruder dimensions."""
        return replace(self, intruders=_replaced(self.intruders, task, intruders))

    def with_params(self, **values: Any) -> Choice:
        """Return a copy with other method parameters.

        A parameter of some layers keeps its name with the filter: `scale[@0:12]`.
        """
        params = as_params({**dict(self.params), **values})
        return self._copy(self.indices, self.weights, params)

    def _copy(self, indices: tuple[int, ...], weights: tuple[float, ...], params: Params) -> Choice:
        # Not replace(), which takes three times as long: a search asks for thousands of neighbours.
        shares = self.keep, self.intruders
        return Choice(indices, weights, *shares, params, self.spans, self.by_loss)


def _parts(sources: Iterable[Source]) -> tuple[Part, ...]:
    parts = (
        Part(member.key, source.weight * share / sum(source.shares), source.keep, source.intruders)
        for source in sources
        for member, share in zip(source.members, source.shares, strict=True)
    )
    return tuple(sorted(parts, key=lambda part: (part.sha, part.weight)))


def weighted_by_loss(members: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return steps of one expert, each with a share in inverse proportion to its training loss.

    Shares sum to 1 and have four digits. Steps without recorded losses, or with equal ones, keep
    the share 1 of a plain mean. Source: metrics-weighted averaging, arXiv 2504.18580.
    """
    losses = [member.loss for member in members]
    known = [max(loss, _LEAST_LOSS) for loss in losses if loss is not None and loss >= 0]
    if len(known) < len(losses):
        return tuple(members)
    total = math.fsum(1 / loss for loss in known)
    shares = [round(1 / loss / total, 4) for loss in known]
    if len(set(shares)) == 1 or not all(shares):
        return tuple(members)
    return tuple(
        replace(member, source=replace(member.source, weight=share))
        for member, share in zip(members, shares, strict=True)
    )


def plain_choice(indices: tuple[int, ...], params: Mapping[str, Any]) -> Choice:
    """Return a choice of these candidates with equal weights, neither trimmed nor damped."""
    ones = (1.0,) * len(indices)
    return Choice(indices, ones, ones, ones, as_params(params))


def as_params(values: Mapping[str, Any]) -> Params:
    """Return parameters as a hashable value; lists, of numbers over the layers, become tuples."""
    pairs = ((n, tuple(v) if isinstance(v, list) else v) for n, v in values.items())
    return tuple(sorted(pairs))


def _replaced(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])
