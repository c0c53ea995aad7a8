"""The search for a better choice: races, hill climbing, a budget.

A race asks a challenger an eighth of the rows, a quarter, a half, and gives it up as soon as it is
behind by two standard errors of the difference. So a challenger that is in truth at least as good
is lost with a probability of at most 3 x 2.3 %, by the normal approximation; what is kept has been
asked every row. Source of the idea: Maron and Moore, Hoeffding races (NIPS 1993).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hubmerge.selection import noise
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import Grid
from hubmerge.selection.pool import Choice
from hubmerge.selection.proxy import without_data
from hubmerge.trials import Trial

_SHARES = (0.125, 0.25, 0.5)
_BEHIND = 2.0  # standard errors


class OutOfBudget(Exception):
    """Nothing more may be measured."""


@dataclass(frozen=True)
class Found:
    """A choice, and what it got right of every row."""

    choice: Choice
    trial: Trial

    @property
    def accuracy(self) -> float:
        return self.trial.accuracy


@dataclass
class Budget:
    """The most merges and seconds that may be spent; None for no end."""

    merges: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._started, self._reserved = time.monotonic(), 0

    def reserve(self, merges: int) -> None:
        """Keep so many merges back for later, but no more than a quarter of all."""
        self._reserved = min(merges, (self.merges or 0) // 4)

    def release(self) -> None:
        """Let what was kept back be spent."""
        self._reserved = 0

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    def check(self, arena: Evaluator, recipe: str) -> None:
        """Raise OutOfBudget if another merge would be one too many, or time is up."""
        is_new = not arena.was_asked(recipe)
        if is_new and self.merges is not None and arena.merges >= self.merges - self._reserved:
            raise OutOfBudget
        if self.seconds is not None and self.spent_s >= self.seconds:
            raise OutOfBudget


class Search:
    """Measures within a budget; `exhaustive` asks every row of every point of the grid."""

    def __init__(
        self,
        arena: Evaluator,
        grid: Grid,
        budget: Budget,
        exhaustive: bool = False,
    ) -> None:
        self.arena, self.grid, self.pool = arena, grid, arena.pool
        self.budget, self._exhaustive = budget, exhaustive
        self.tell: Callable[[Found], None] = _silent
        self.best: Found | None = None

    def forget_best(self) -> None:
        """Let `best` be the best of what is asked from now on."""
        self.best = None

    def alone(self, task: int, place: int) -> float:
        """The accuracy of one candidate on its own task; raises OutOfBudget."""
        self.budget.check(self.arena, self.arena.recipe_alone(task, place))
        return self.arena.alone(task, place).accuracy

    def start(self, places: tuple[int, ...]) -> Found:
        """These candidates with the parameters that a climb starts from, on all rows."""
        choice = without_data(self.pool, self.arena.blender, self.grid, places)
        if "scale" in self.grid.values:
            scale = self.grid.nearest("scale", dict(choice.params)["scale"])
            choice = choice.setting(scale=scale)
        return self.whole(choice)

    def whole(self, choice: Choice) -> Found:
        """All rows of a choice; raises OutOfBudget."""
        found = Found(choice, self._measure(choice, 1.0))
        if self.best is None or found.accuracy > self.best.accuracy:
            self.best = found
        self.tell(found)
        return found

    def better(self, choice: Choice, best: Found) -> Found:
        """Whichever of the two is better on all rows; the challenger is raced against the best."""
        if choice == best.choice or not self._may_win(choice, best):
            return best
        found = self.whole(choice)
        return found if found.accuracy > best.accuracy else best

    def best_of(self, choices: Iterable[Choice], best: Found) -> Found:
        """The best of these and of the best so far."""
        for choice in choices:
            best = self.better(choice, best)
        return best

    def tune(self, best: Found, strides: Iterable[int]) -> Found:
        """Climb in the grid of parameters, one at a time, from large strides to small ones."""
        if self._exhaustive:
            return self.best_of((best.choice.setting(**p) for p in self.grid.points), best)
        for stride in strides:
            for name, values in self.grid.values.items():
                if stride < len(values):
                    best = self._climb(best, name, stride)
        return best

    def _climb(self, best: Found, name: str, stride: int) -> Found:
        for signed in (stride, -stride):
            while True:
                now = dict(best.choice.params)[name]
                value = self.grid.step(name, now, signed)
                if value is None:
                    break
                found = self.better(best.choice.setting(**{name: value}), best)
                if found is best:
                    break
                best = found
        return best

    def _may_win(self, choice: Choice, best: Found) -> bool:
        """Whether it has not fallen behind beyond doubt before its last rows are asked."""
        for share in () if self._exhaustive else _SHARES:
            trial = self._measure(choice, share)
            behind = noise.gain(trial, best.trial) + _BEHIND * noise.stderr(trial, best.trial)
            if behind < 0:
                return False
        return True

    def _measure(self, choice: Choice, share: float) -> Trial:
        self.budget.check(self.arena, self.pool.recipe(choice, self.arena.method.name))
        return self.arena.measure(choice, share)


def _silent(found: Found) -> None:
    return None
