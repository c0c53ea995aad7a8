"""The search for a better choice: races, hill climbing, a budget.

A race evaluates a challenger on an eighth of the rows, a quarter, a half, and stops early when it
is behind by two standard errors of the difference. So a challenger that is truly at least as good
is lost with a probability of at most 3 x 2.3 %, by the normal approximation. A choice that is kept
was evaluated on every row. Source of the idea: Maron and Moore, Hoeffding races (NIPS 1993).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hubmerge.selection import noise
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import Grid
from hubmerge.selection.pool import Choice
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
    """The most merges and seconds to spend; None for no limit."""

    merges: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._started, self._reserved = time.monotonic(), 0

    def reserve(self, merges: int) -> None:
        """Reserve `merges` for later, at most a quarter of the budget."""
        self._reserved = min(merges, (self.merges or 0) // 4)

    def release(self) -> None:
        """Release the reserved merges."""
        self._reserved = 0

    def without_merges(self) -> Budget:
        """Return a budget of the seconds that are left, for any number of merges."""
        seconds = None if self.seconds is None else max(self.seconds - self.spent_s, 0.0)
        return Budget(None, seconds)

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    def check(self, evaluator: Evaluator, recipe: str) -> None:
        """Raise OutOfBudget if the recipe would be one merge too many, or time is up."""
        is_new = not evaluator.has_measured(recipe)
        if is_new and self.merges is not None and evaluator.merges >= self.merges - self._reserved:
            raise OutOfBudget
        if self.seconds is not None and self.spent_s >= self.seconds:
            raise OutOfBudget


class Search:
    """Measures choices within a budget, and finds better ones.

    `exhaustive` evaluates every row at every point of the grid. `on_result` is called with every
    choice that was measured on all rows.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        grid: Grid,
        budget: Budget,
        exhaustive: bool = False,
    ) -> None:
        self.evaluator, self.grid, self.pool = evaluator, grid, evaluator.pool
        self.budget, self._exhaustive = budget, exhaustive
        self.on_result: Callable[[MeasuredChoice], None] = _ignore_result
        self.best: MeasuredChoice | None = None

    def reset_best(self) -> None:
        """Forget `best`: it is the best of what is measured from now on."""
        self.best = None

    def measure_expert(self, task: int, index: int) -> float:
        """Return the accuracy of one candidate on its own task; raises OutOfBudget."""
        self.budget.check(self.evaluator, self.evaluator.expert_recipe(task, index))
        return self.evaluator.measure_expert(task, index).accuracy

    def measure_start(self, indices: tuple[int, ...]) -> MeasuredChoice:
        """Measure these candidates on all rows, with the parameters that a climb starts from."""
        choice = data_free_choice(self.pool, self.evaluator.merger, self.grid, indices)
        if "scale" in self.grid.values:
            scale = self.grid.nearest("scale", dict(choice.params)["scale"])
            choice = choice.with_params(scale=scale)
        return self.measure_all_rows(choice)

    def measure_all_rows(self, choice: Choice) -> MeasuredChoice:
        """Measure a choice on all rows; raises OutOfBudget."""
        measured = MeasuredChoice(choice, self._measure(choice, 1.0))
        if self.best is None or measured.accuracy > self.best.accuracy:
            self.best = measured
        self.on_result(measured)
        return measured

    def better_of(self, choice: Choice, best: MeasuredChoice) -> MeasuredChoice:
        """Race a challenger against the best, and return the better of the two."""
        if choice == best.choice or not self._survives_race(choice, best):
            return best
        measured = self.measure_all_rows(choice)
        return measured if measured.accuracy > best.accuracy else best

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
        for signed_stride in (stride, -stride):
            while True:
                current = dict(best.choice.params)[name]
                value = self.grid.neighbour(name, current, signed_stride)
                if value is None:
                    break
                better = self.better_of(best.choice.with_params(**{name: value}), best)
                if better is best:
                    break
                best = better
        return best

    def _survives_race(self, choice: Choice, best: MeasuredChoice) -> bool:
        """Return whether the challenger is still in the race before its last rows."""
        for share in () if self._exhaustive else _SHARES:
            trial = self._measure(choice, share)
            behind = noise.gain(trial, best.trial) + _BEHIND * noise.stderr(trial, best.trial)
            if behind < 0:
                return False
        return True

    def _measure(self, choice: Choice, share: float) -> Trial:
        self.budget.check(self.evaluator, self.evaluator.recipe(choice))
        return self.evaluator.measure(choice, share)


def _ignore_result(measured: MeasuredChoice) -> None:
    return None
