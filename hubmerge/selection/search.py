"""The search for a better choice: races, hill climbing in the grid, a budget.

A race evaluates a challenger on an eighth of the rows, a quarter, a half, and stops early when it
is behind by two standard errors of the difference. So a challenger that is truly as good as a fixed
rival is lost with a probability of at most 3 x 2.3 %, by the normal approximation. The rival here
is the best of all that were measured on the same rows, which was lucky on them: against the best of
30, 17 to 24 % of equally good challengers are lost, and rarely a better one. A choice that is kept
was evaluated on every row. Source of the idea: Maron and Moore, Hoeffding races (NIPS 1993).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from hubmerge.selection import objective as objectives
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import Grid
from hubmerge.selection.objective import Objective
from hubmerge.selection.proxy import data_free_choice
from hubmerge.trials import Trial

_SHARES = (0.125, 0.25, 0.5)
_BEHIND = 2.0  # standard errors


class OutOfBudget(Exception):
    """Raised when the budget allows no further measurement."""


@dataclass(frozen=True)
class MeasuredChoice:
    """A choice and its trial over every row."""

    choice: Choice
    trial: Trial

    @property
    def accuracy(self) -> float:
        return self.trial.accuracy


@dataclass
class Budget:
    """The most merges and seconds to spend; None for no limit.

    `allot` lets what follows spend only a fraction of what is left, until the next `allot`.
    """

    merges: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._merges_allotted, self._seconds_allotted = math.inf, math.inf

    def allot(self, spent: int, fraction: float) -> None:
        """Allow a fraction (0 to 1) of the merges and seconds left, but at least one merge.

        `spent` is the number of merges so far.
        """
        if self.merges is not None:
            left = self.merges - spent
            self._merges_allotted = spent + max(round(fraction * left), 1)
        if self.seconds is not None:
            left_s = max(self.seconds - self.spent_s, 0.0)
            self._seconds_allotted = self.spent_s + fraction * left_s

    def without_merges(self) -> Budget:
        """Return a budget of the seconds that are left, for any number of merges."""
        seconds = None if self.seconds is None else max(self.seconds - self.spent_s, 0.0)
        return Budget(None, seconds)

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    def check(self, evaluator: Evaluator, recipe: str) -> None:
        """Raise OutOfBudget if the recipe would be one merge too many, or time is up."""
        merges = math.inf if self.merges is None else self.merges
        seconds = math.inf if self.seconds is None else self.seconds
        is_new = not evaluator.has_measured(recipe)
        if is_new and evaluator.merges >= min(merges, self._merges_allotted):
            raise OutOfBudget
        if self.spent_s >= min(seconds, self._seconds_allotted):
            raise OutOfBudget


class Search:
    """Measures choices within a budget, and finds better ones.

    `exhaustive` evaluates every row at every point of the grid. `on_result` is called with every
    choice that was measured on all rows. `objective` is what is maximised. `trials` are those of
    this search, in their order.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        grid: Grid,
        budget: Budget,
        exhaustive: bool = False,
        objective: Objective = "mean",
    ) -> None:
        self.evaluator, self.grid, self.pool = evaluator, grid, evaluator.pool
        self.budget, self._exhaustive, self.objective = budget, exhaustive, objective
        self.on_result: Callable[[MeasuredChoice], None] = _ignore_result
        self.best: MeasuredChoice | None = None
        self.trials: dict[Choice, Trial] = {}
        self._estimates: dict[Choice, tuple[Trial, Trial, tuple[float, float]]] = {}

    def reset_best(self, start: MeasuredChoice | None = None) -> None:
        """Forget `best`: it is the best of the start, if any, and what is measured from now on."""
        self.best = start

    def measure_expert(self, task: int, index: int) -> float:
        """Return the accuracy of one candidate on its own task; raises OutOfBudget."""
        self.budget.check(self.evaluator, self.evaluator.expert_recipe(task, index))
        return self.evaluator.measure_expert(task, index).accuracy

    def measure_start(self, indices: tuple[int, ...]) -> MeasuredChoice:
        """Measure these candidates on all rows, with the parameters that a climb starts from."""
        self._check_start(indices)
        choice = data_free_choice(self.pool, self.evaluator.merger, self.grid, indices)
        if "scale" in self.grid.values:
            scale = self.grid.nearest("scale", dict(choice.params)["scale"])
            choice = choice.with_params(scale=scale)
        return self.measure_all_rows(choice)

    def _check_start(self, indices: tuple[int, ...]) -> None:
        """Raise OutOfBudget, before any norm is computed, if no scale could be measured."""
        start = plain_choice(indices, self.evaluator.method.params().model_dump())
        scales = self.grid.values.get("scale", ())
        for choice in [start.with_params(scale=scale) for scale in scales] or [start]:
            recipe = self.evaluator.recipe(choice)
            with suppress(OutOfBudget):
                self.budget.check(self.evaluator, recipe)
                self.evaluator.check_limit(recipe)
                return
        raise OutOfBudget

    def measure_all_rows(self, choice: Choice) -> MeasuredChoice:
        """Measure a choice on all rows; raises OutOfBudget."""
        measured = MeasuredChoice(choice, self._measure(choice, 1.0))
        if self.best is None or self.is_better(measured, self.best):
            self.best = measured
        self.on_result(measured)
        return measured

    def is_better(self, measured: MeasuredChoice, best: MeasuredChoice) -> bool:
        """Return whether a choice is more accurate, or equally accurate with earlier steps."""
        return self.rank(measured) > self.rank(best)

    def rank(self, measured: MeasuredChoice) -> tuple[float, float, float]:
        """Return what a better choice has more of: the objective, the mean, and early steps."""
        value = objectives.value(measured.trial, self.objective)
        return value, measured.accuracy, -self.pool.lateness(measured.choice)

    def estimate(self, choice: Choice, trial: Trial, best: Trial) -> tuple[float, float]:
        """Estimate the value of a choice and its variance from the rows shared with the best.

        The last estimate of every choice is kept, as each proposal needs all of them.
        """
        last = self._estimates.get(choice)
        if last is None or last[0] is not trial or last[1] is not best:
            last = trial, best, objectives.estimate(trial, best, self.objective)
            self._estimates[choice] = last
        return last[2]

    def better_of(self, choice: Choice, best: MeasuredChoice) -> MeasuredChoice:
        """Race a challenger against the best, and return the better of the two."""
        if choice == best.choice or not self._survives_race(choice, best):
            return best
        measured = self.measure_all_rows(choice)
        return measured if self.is_better(measured, best) else best

    def best_of(self, choices: Iterable[Choice], best: MeasuredChoice) -> MeasuredChoice:
        """Return the best of these choices and of the best so far."""
        for choice in choices:
            best = self.better_of(choice, best)
        return best

    def tune(self, best: MeasuredChoice, strides: Iterable[int]) -> MeasuredChoice:
        """Climb in the grid, one parameter at a time, with one stride after another."""
        if self._exhaustive:
            return self.best_of((best.choice.with_params(**p) for p in self.grid.points), best)
        for stride in strides:
            for name, values in self.grid.values.items():
                if stride < len(values):
                    best = self._climb(best, name, stride)
        return best

    def _climb(self, best: MeasuredChoice, name: str, stride: int) -> MeasuredChoice:
        """Move a parameter up or down as long as that helps, twice as far each time."""
        for signed_stride in (stride, -stride):
            while True:
                current = dict(best.choice.params)[name]
                value = self.grid.neighbour(name, current, signed_stride)
                if value is None:
                    break
                better = self.better_of(best.choice.with_params(**{name: value}), best)
                if better is best:
                    break
                best, signed_stride = better, 2 * signed_stride
        return best

    def _survives_race(self, choice: Choice, best: MeasuredChoice) -> bool:
        """Return whether the challenger is still in the race before its last rows."""
        for share in () if self._exhaustive else _SHARES:
            trial = self._measure(choice, share)
            lead, stderr = objectives.lead(trial, best.trial, self.objective)
            if lead + _BEHIND * stderr < 0:
                return False
        return True

    def _measure(self, choice: Choice, share: float) -> Trial:
        self.budget.check(self.evaluator, self.evaluator.recipe(choice))
        trial = self.evaluator.measure(choice, share)
        longest = self.trials.get(choice)
        if longest is None or longest.rows_measured < trial.rows_measured:
            self.trials[choice] = trial
        return trial


def _ignore_result(measured: MeasuredChoice) -> None:
    return None
