"""The candidates of a selection: the steps of every task's experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from hubmerge.recipe_ids import averaged_key, recipe_id
from hubmerge.selection.candidate import Candidate, weighted_by_loss
from hubmerge.selection.choice import Choice
from hubmerge.source import Source
from hubmerge.tasks.task import Task
from hubmerge.trials import Part
from hubmerge.weights.averaged import average_checkpoints
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.layer_names import count_layers
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions
from hubmerge.weights.task_vector import TaskVector


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


def _parts(sources: Iterable[Source]) -> tuple[Part, ...]:
    parts = (
        Part(member.key, source.weight * share / sum(source.shares), source.keep, source.intruders)
        for source in sources
        for member, share in zip(source.members, source.shares, strict=True)
    )
    return tuple(sorted(parts, key=lambda part: (part.sha, part.weight)))
