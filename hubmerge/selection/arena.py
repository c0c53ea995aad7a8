"""Where choices meet: each is merged in memory and asked the validation rows of every task.

Rows are asked in an order that is fixed for each task, a share of every task at a time, so that a
hopeless choice is given up after a few, and any two choices can be compared row by row. Nothing is
measured twice: what is known is in the log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubmerge.manifest import recipe_id
from hubmerge.merging.registry import Method
from hubmerge.selection.blending import Blender
from hubmerge.selection.pool import Choice, Pool
from hubmerge.selection.stage import Stage
from hubmerge.trials import ALONE, Part, Rows, Trial, TrialLog
from hubmerge.weights.dtypes import Array


class Arena:
    """Measures choices of a pool, merged by one method, on one split of each task.

    `asked` is how many rows of each recipe were asked for, whether the log knew them or not: what
    a selection costs does not hang on what was done before.
    """

    def __init__(
        self,
        pool: Pool,
        blender: Blender,
        method: Method,
        stages: Sequence[Stage],
        log: TrialLog,
        split: str,
    ) -> None:
        self.pool, self.method = pool, method
        self.asked: dict[str, int] = {}
        self.blender, self._stages, self._log, self._split = blender, stages, log, split
        known = (trial for trial in log.read() if trial.split == split)
        self._known = {trial.recipe: trial for trial in known if self._fits(trial)}
        self._standing: str | None = None

    @property
    def merges(self) -> int:
        """How many merges were asked for."""
        return len(self.asked)

    @property
    def rows(self) -> int:
        """How many rows the split has in all tasks."""
        return sum(len(stage.order) for stage in self._stages)

    def measure(self, choice: Choice, share: float = 1.0) -> Trial:
        """What a choice gets right of the first rows of every task, of this share of them."""
        recipe = self.pool.recipe(choice, self.method.name)
        trial = self._known.get(recipe) or self._new(
            recipe, self.pool.parts(choice), self.method.name, dict(choice.params), self._stages
        )
        folders = [self.pool.open(expert).folder for expert in self.pool.experts(choice)]
        places = list(zip(self._stages, folders, strict=True))
        return self._asked(trial, places, share, lambda: self.blender.merged(choice))

    def alone(self, task: int, place: int) -> Trial:
        """What one candidate by itself gets right of its own task."""
        candidate, stage = self.pool.candidates[task][place], self._stages[task]
        recipe = self.recipe_alone(task, place)
        parts = (Part(candidate.source.key),)
        trial = self._known.get(recipe) or self._new(recipe, parts, ALONE, {}, [stage])
        places = [(stage, self.pool.open(candidate).folder)]
        return self._asked(trial, places, 1.0, lambda: self.blender.alone(candidate))

    def known_alone(self, task: int, place: int) -> float | None:
        """The accuracy of one candidate on its own task, if it was measured."""
        trial = self._known.get(self.recipe_alone(task, place))
        return trial.accuracy if trial else None

    def recipe_alone(self, task: int, place: int) -> str:
        """The identity of one candidate by itself."""
        source = self.pool.candidates[task][place].source
        return recipe_id(self.pool.base, (source,), ALONE, {})

    def known(self, choice: Choice) -> Trial | None:
        """All that is known of a choice, None for nothing."""
        return self._known.get(self.pool.recipe(choice, self.method.name))

    def _asked(
        self,
        trial: Trial,
        places: Sequence[tuple[Stage, Path]],
        share: float,
        merged: Callable[[], Iterable[tuple[str, Array]]],
    ) -> Trial:
        """The trial over its first rows; those that are not known yet are asked now."""
        wanted = {stage.task.id: stage.count(share) for stage, _ in places}
        asked = max(self.asked.get(trial.recipe, 0), sum(wanted.values()))
        self.asked[trial.recipe] = asked
        if any(len(trial.rows[task].bits) < count for task, count in wanted.items()):
            if self._standing != trial.recipe:
                self._dress(trial.recipe, dict(merged()))
            rows = dict(trial.rows)
            for stage, folder in places:
                had = rows[stage.task.id]
                said = stage.ask(stage.order[len(had.bits) : wanted[stage.task.id]], folder)
                rows[stage.task.id] = Rows(had.bits + said, had.of)
            trial = dataclasses.replace(trial, rows=rows)
            self._known[trial.recipe] = trial
            self._log.append([trial])
        first = {
            task: Rows(trial.rows[task].bits[:n], trial.rows[task].of) for task, n in wanted.items()
        }
        return dataclasses.replace(trial, rows=first)

    def _dress(self, recipe: str, merged: Mapping[str, Array]) -> None:
        """Put a merge into every model that is open; only what it changes is written."""
        self._standing = None
        for dressed in dict.fromkeys(stage.dressed for stage in self._stages):
            dressed.wear(merged)
        self._standing = recipe

    def _fits(self, trial: Trial) -> bool:
        """Whether a logged trial is about our tasks, or one of them."""
        ours = {stage.task.id: len(stage.order) for stage in self._stages}
        theirs = {task: rows.of for task, rows in trial.rows.items()}
        return theirs == ours or (trial.method == ALONE and theirs.items() <= ours.items())

    def _new(
        self,
        recipe: str,
        parts: tuple[Part, ...],
        method: str,
        params: Mapping[str, Any],
        stages: Sequence[Stage],
    ) -> Trial:
        rows = {stage.task.id: Rows("", len(stage.order)) for stage in stages}
        return Trial(recipe, self.pool.base.sha, parts, method, params, self._split, rows)
