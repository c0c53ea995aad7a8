"""Folds of the validation rows: a search sees the rows outside a fold, and is judged on the fold.

Fold k of n holds every n-th row of each task, from the k-th on, in the fixed order in which rows
are evaluated. That order is random and the same for every choice, so each fold is a random sample
of each task; and the first rows of a task hold the first rows of all folds, so a trial of a fold is
a view of an ordinary trial: the log holds nothing new.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, cycle

from hubmerge.selection.choice import Choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.search import OutOfBudget
from hubmerge.trials import RowResults, RowValues, Trial, join_rows

MIN_ROWS = 4  # of a task: two in each half, or there is no variance


@dataclass(frozen=True)
class Fold:
    """Fold `number`, from 0, of `count` folds."""

    number: int
    count: int

    def search_rows(self, trial: Trial) -> Trial:
        """Return the trial over the rows outside the fold, on which a search decides."""
        rows = {
            task: RowResults("", self.search_count(results.of)).with_rows(
                self._outside(results.measured)
            )
            for task, results in trial.rows.items()
        }
        return dataclasses.replace(trial, rows=rows)

    def search_count(self, rows: int) -> int:
        """Return how many of a task's rows are outside the fold."""
        return rows - len(range(self.number, rows, self.count))

    def _outside(self, measured: RowValues) -> RowValues:
        if self.count == 2:
            return measured[1 - self.number :: 2]
        seen = (number != self.number for number in cycle(range(self.count)))
        if isinstance(measured, str):
            return "".join(compress(measured, seen))
        return tuple(compress(measured, seen))


def folds(count: int) -> tuple[Fold, ...]:
    """Return all folds, which together hold every row once."""
    return tuple(Fold(number, count) for number in range(count))


def pool_trials(trials: Sequence[Trial]) -> Trial:
    """Return one trial whose rows are those of the k-th trial in the k-th fold.

    Every trial must be complete. The recipe is that of the trials if they are of one merge, else a
    digest of their recipes.
    """
    first, count = trials[0], len(trials)
    recipes = [trial.recipe for trial in trials]
    rows = {}
    for task, results in first.rows.items():
        measured = [trial.rows[task].measured for trial in trials]
        ordered = [measured[row % count][row : row + 1] for row in range(results.of)]
        rows[task] = results.with_rows(join_rows(ordered))
    recipe = recipes[0] if len(set(recipes)) == 1 else _digest(recipes)
    return dataclasses.replace(first, recipe=recipe, rows=rows)


def _digest(recipes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(recipes).encode()).hexdigest()


class FoldEvaluator(Evaluator):
    """Measures choices on the rows outside a fold, as a view of trials of all rows.

    `merges` counts what was requested here, as if this search were alone. OutOfBudget is raised for
    a merge that `full` has not measured once that has measured `limit` of them.
    """

    def __init__(self, full: Evaluator, fold: Fold, limit: int | None = None) -> None:
        # Nothing of the log is read again: every trial comes from `full`.
        self.pool, self.method, self.merger = full.pool, full.method, full.merger
        self.full, self.fold, self._limit = full, fold, limit
        self._measured: dict[str, Trial] = {}
        self._recipes = full._recipes

    @property
    def rows(self) -> int:
        """The number of rows of all tasks together that a search sees."""
        return sum(self.row_counts.values())

    @property
    def row_counts(self) -> Mapping[str, int]:
        """The number of rows of each task that a search sees, by task id."""
        counts = self.full.row_counts.items()
        return {task: self.fold.search_count(count) for task, count in counts}

    def measure(self, choice: Choice, share: float = 1.0) -> Trial:
        """Measure a choice on the first `share` of the rows outside the fold."""
        self.check_limit(self.recipe(choice))
        # So many rows that each task has one outside the fold.
        least = min(1.0, self.fold.count / min(self.full.row_counts.values()))
        return self._record(self.fold.search_rows(self.full.measure(choice, max(share, least))))

    def measure_expert(self, task: int, index: int) -> Trial:
        """Measure one candidate on its own task, on the rows outside the fold."""
        self.check_limit(self.expert_recipe(task, index))
        return self._record(self.fold.search_rows(self.full.measure_expert(task, index)))

    def check_limit(self, recipe: str) -> None:
        """Raise OutOfBudget if `full` has measured as many merges as it may, and not this one."""
        if self._limit is None or self.full.has_measured(recipe):
            return
        if self.full.merges >= self._limit:
            raise OutOfBudget
