"""Evaluates choices: each is merged in memory and evaluated on validation rows of every task.

The rows of a task are evaluated in a fixed order, a share of every task at a time. So a poor choice
can be stopped early, and any two choices can be compared row by row. Trials that are in the log
are not measured again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hubmerge.merging.registry import Method
from hubmerge.recipe_ids import recipe_id
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.selection.row_jobs import (
    BaseTensors,
    CandidateTensors,
    ChoiceTensors,
    LocalRows,
    RowEvaluator,
    RowJob,
    TensorSource,
)
from hubmerge.selection.task_split import TaskSplit
from hubmerge.trials import SINGLE_EXPERT, Part, RowResults, Trial, TrialLog

Merge = tuple[tuple[Part, ...], str, Mapping[str, Any]]  # the parts, method and parameters


class Evaluator:
    """Measures choices of a pool, merged by one method, on one split of each task.

    Every requested measurement counts, even if the result was in the log: the cost and result of a
    selection do not depend on earlier runs. `rows` evaluates them, by default in this process.
    """

    def __init__(
        self,
        pool: Pool,
        merger: MemoryMerger,
        method: Method,
        splits: Sequence[TaskSplit],
        log: TrialLog,
        split: str,
        rows: RowEvaluator | None = None,
    ) -> None:
        self.pool, self.method = pool, method
        self._measured: dict[str, Trial] = {}
        self.merger, self._splits, self._log, self._split = merger, splits, log, split
        self._logged = {trial.key: trial for trial in log.read()}
        self._rows = rows or LocalRows(pool, merger, splits)
        self._recipes: dict[Choice, str] = {}

    @property
    def rows_by_recipe(self) -> dict[str, int]:
        """How many rows were requested, by recipe."""
        return {recipe: trial.rows_measured for recipe, trial in self._measured.items()}

    def has_measured(self, recipe: str) -> bool:
        """Return whether any row of the recipe was requested."""
        return recipe in self._measured

    def check_limit(self, recipe: str) -> None:
        """Raise OutOfBudget if the recipe may not be measured; here all may."""

    @property
    def merges(self) -> int:
        """How many merges were requested."""
        return len(self._measured)

    @property
    def rows(self) -> int:
        """The number of rows of all tasks together."""
        return sum(len(split.row_order) for split in self._splits)

    @property
    def row_counts(self) -> Mapping[str, int]:
        """The number of rows of each task, by task id."""
        return {split.task.id: len(split.row_order) for split in self._splits}

    def measure(self, choice: Choice, share: float = 1.0) -> Trial:
        """Measure a choice on the first `share` (above 0, at most 1) of every task's rows."""
        trial = self._find_or_start(
            self.recipe(choice), self._splits, lambda: self._merge_of(choice)
        )
        experts = dict(enumerate(choice.indices))
        return self._measure_rows(trial, experts, share, ChoiceTensors(choice))

    def measure_expert(self, task: int, index: int) -> Trial:
        """Measure one candidate, without merging it, on its own task."""
        candidate, split = self.pool.candidates[task][index], self._splits[task]
        recipe = self.expert_recipe(task, index)
        parts = (Part(candidate.source.key),)
        trial = self._find_or_start(recipe, [split], lambda: (parts, SINGLE_EXPERT, {}))
        return self._measure_rows(trial, {task: index}, 1.0, CandidateTensors(task, index))

    def recipe(self, choice: Choice) -> str:
        """Return the recipe id of a choice, which is computed once."""
        if choice not in self._recipes:
            self._recipes[choice] = self.pool.recipe(choice, self.method.name)
        return self._recipes[choice]

    def measure_unmerged(self, choice: Choice, task: int | None) -> Trial:
        """Measure the chosen expert of one task alone, or the base for None, on all tasks.

        Each task is measured under the head of its own chosen expert, as in the merge.
        """
        parts = self.pool.all_parts(_only(choice, task))
        recipe = self.unmerged_recipe(choice, task)
        trial = self._find_or_start(recipe, self._splits, lambda: (parts, SINGLE_EXPERT, {}))
        source = BaseTensors() if task is None else CandidateTensors(task, choice.indices[task])
        return self._measure_rows(trial, dict(enumerate(choice.indices)), 1.0, source)

    def unmerged_recipe(self, choice: Choice, task: int | None) -> str:
        """Return the recipe id of the base or one expert under the heads of a choice."""
        sources = self.pool.all_sources(_only(choice, task))
        return recipe_id(self.pool.base, sources, SINGLE_EXPERT, {})

    def expert_recipe(self, task: int, index: int) -> str:
        """Return the recipe id of one candidate that is not merged."""
        source = self.pool.candidates[task][index].source
        return recipe_id(self.pool.base, (source,), SINGLE_EXPERT, {})

    def find_trial(self, choice: Choice) -> Trial | None:
        """Return the trial of a choice over the rows requested here, None if there is none."""
        return self._measured.get(self.recipe(choice))

    def find_expert_accuracy(self, task: int, index: int) -> float | None:
        """Return the accuracy of one candidate on its own task, None if not requested here."""
        trial = self._measured.get(self.expert_recipe(task, index))
        return trial.accuracy if trial else None

    def _measure_rows(
        self,
        trial: Trial,
        experts: Mapping[int, int],
        share: float,
        source: TensorSource,
    ) -> Trial:
        """Return the trial over the first `share` of rows; evaluate those that are missing.

        `experts` maps the index of each task to that of the candidate whose head it uses.
        """
        splits = {task: self._splits[task] for task in experts}
        wanted = {split.task.id: split.row_count(share) for split in splits.values()}
        if any(trial.rows[task].count < count for task, count in wanted.items()):
            jobs = [self._missing_rows(trial, task, experts[task], wanted) for task in splits]
            measured = self._rows.evaluate(trial.recipe, source, jobs)
            rows = dict(trial.rows)
            for split, more in zip(splits.values(), measured, strict=True):
                rows[split.task.id] = rows[split.task.id].extended(more.values)
                split.count_texts(more)
            trial = dataclasses.replace(trial, rows=rows)
            self._logged[trial.key] = trial
            self._log.append([trial])
        return self._record(trial.truncate(wanted))

    def _record(self, trial: Trial) -> Trial:
        """Keep the trial as requested, unless more rows of the merge were requested before."""
        previous = self._measured.get(trial.recipe)
        if previous is None or previous.rows_measured < trial.rows_measured:
            self._measured[trial.recipe] = trial
        return trial

    def _missing_rows(
        self, trial: Trial, task: int, index: int, wanted: Mapping[str, int]
    ) -> RowJob:
        split = self._splits[task]
        start = trial.rows[split.task.id].count
        rows = split.row_order[start : wanted[split.task.id]]
        return RowJob(task, index, start, tuple(rows))

    def _merge_of(self, choice: Choice) -> Merge:
        return self.pool.parts(choice), self.method.name, dict(choice.params)

    def _find_or_start(
        self, recipe: str, splits: Sequence[TaskSplit], describe: Callable[[], Merge]
    ) -> Trial:
        """Return the logged trial of a recipe on these splits, else a new one without results."""
        counts = {split.task.id: len(split.row_order) for split in splits}
        logged = self._logged.get((recipe, self._split, tuple(sorted(counts.items()))))
        if logged is not None:
            return logged
        parts, method, params = describe()
        rows = {task: RowResults("", count) for task, count in counts.items()}
        return Trial(recipe, self.pool.base.sha, parts, method, params, self._split, rows)


def _only(choice: Choice, task: int | None) -> Choice:
    """Return the candidates of a choice at weight 0, but for that of one task."""
    weights = (float(number == task) for number in range(len(choice.indices)))
    return dataclasses.replace(plain_choice(choice.indices, {}), weights=tuple(weights))
