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
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.pool import Choice, Pool
from hubmerge.selection.task_split import Stage
from hubmerge.trials import ALONE, Part, Rows, Trial, TrialLog
from hubmerge.weights.dtypes import Array


class Evaluator:
    """Measures choices of a pool, merged by one method, on one split of each task.

    What is asked for here counts, whether the log knew it or not: neither what a selection costs
    nor what it tells hangs on what was done before.
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
        self._told: dict[str, Trial] = {}
        self.blender, self._stages, self._log, self._split = blender, stages, log, split
        self._known = {trial.key: trial for trial in log.read()}
        self._standing: str | None = None

    @property
    def asked(self) -> dict[str, int]:
        """How many rows of each recipe were asked for."""
        return {recipe: trial.measured for recipe, trial in self._told.items()}

    def was_asked(self, recipe: str) -> bool:
        """Whether any row of it was asked for."""
        return recipe in self._told

    @property
    def merges(self) -> int:
        """How many merges were asked for."""
        return len(self._told)

    @property
    def rows(self) -> int:
        """How many rows the split has in all tasks."""
        return sum(len(stage.order) for stage in self._stages)

    def measure(self, choice: Choice, share: float = 1.0) -> Trial:
        """What a choice gets right of the first rows of every task, of this share of them."""
        recipe = self.pool.recipe(choice, self.method.name)
        trial = self._begun(
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
        trial = self._begun(recipe, parts, ALONE, {}, [stage])
        places = [(stage, self.pool.open(candidate).folder)]
        return self._asked(trial, places, 1.0, lambda: self.blender.alone(candidate))

    def recipe_alone(self, task: int, place: int) -> str:
        """The identity of one candidate by itself."""
        source = self.pool.candidates[task][place].source
        return recipe_id(self.pool.base, (source,), ALONE, {})

    def known(self, choice: Choice) -> Trial | None:
        """What a choice got right of the rows that it was asked for here, None for nothing."""
        return self._told.get(self.pool.recipe(choice, self.method.name))

    def known_alone(self, task: int, place: int) -> float | None:
        """The accuracy of one candidate on its own task, if it was asked for here."""
        trial = self._told.get(self.recipe_alone(task, place))
        return trial.accuracy if trial else None

    def _asked(
        self,
        trial: Trial,
        places: Sequence[tuple[Stage, Path]],
        share: float,
        merged: Callable[[], Iterable[tuple[str, Array]]],
    ) -> Trial:
        """The trial over its first rows; those that are not known yet are asked now."""
        wanted = {stage.task.id: stage.count(share) for stage, _ in places}
        if any(len(trial.rows[task].bits) < count for task, count in wanted.items()):
            if self._standing != trial.recipe:
                self._dress(trial.recipe, dict(merged()))
            rows = dict(trial.rows)
            for stage, folder in places:
                had = rows[stage.task.id]
                said = stage.ask(stage.order[len(had.bits) : wanted[stage.task.id]], folder)
                rows[stage.task.id] = Rows(had.bits + said, had.of)
            trial = dataclasses.replace(trial, rows=rows)
            self._known[trial.key] = trial
            self._log.append([trial])
        told, before = trial.first(wanted), self._told.get(trial.recipe)
        if before is None or before.measured < told.measured:
            self._told[trial.recipe] = told
        return told

    def _dress(self, recipe: str, merged: Mapping[str, Array]) -> None:
        """Put a merge into every model that is open; only what it changes is written."""
        self._standing = None
        for dressed in dict.fromkeys(stage.dressed for stage in self._stages):
            dressed.wear(merged)
        self._standing = recipe

    def _begun(
        self,
        recipe: str,
        parts: tuple[Part, ...],
        method: str,
        params: Mapping[str, Any],
        stages: Sequence[Stage],
    ) -> Trial:
        rows = {stage.task.id: Rows("", len(stage.order)) for stage in stages}
        new = Trial(recipe, self.pool.base.sha, parts, method, params, self._split, rows)
        return self._known.get(new.key, new)
