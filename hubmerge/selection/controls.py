"""Controls: what a choice must be compared with before its gain means anything.

They are the base, the best single expert on all tasks, steps drawn at random and tuned like any
policy, and the choice without each of its experts. Every control is judged as the choice is: what
is tuned or picked for a fold has not seen its rows (see cross_fit.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from hubmerge.selection.choice import Choice
from hubmerge.selection.cross_fit import CrossFit, FoldSearch
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.folds import FoldEvaluator, pool_trials
from hubmerge.selection.grids import Grid
from hubmerge.selection.search import Budget, OutOfBudget, Search
from hubmerge.trials import Trial

RANDOM_DRAWS = 3
_STRIDES = (2, 1)  # in the grid, as for the policies
BASE, EXPERT, WITHOUT, RANDOM = "base", "expert", "without", "random"


@dataclass(frozen=True)
class MeasuredControl:
    """A control and its pooled trial.

    `name` is the label of the base or expert, the id of the task whose expert is left out, or the
    steps that were drawn.
    """

    kind: str
    name: str
    trial: Trial


@dataclass(frozen=True)
class Controls:
    """The controls that were measured, and the kinds and names of those the budget left out.

    `predicted_gain` is what one more expert would add by the merging scaling law, None if too few
    sizes were measured to fit it, or if a choice leaves experts out.
    """

    measured: tuple[MeasuredControl, ...] = ()
    left_out: tuple[str, ...] = ()
    predicted_gain: float | None = None


class ControlRuns:
    """Measures the controls of a choice within a budget."""

    def __init__(
        self,
        fit: CrossFit,
        evaluator: Evaluator,
        chosen: Choice,
        grid: Grid,
        budget: Budget,
        seed: int,
    ) -> None:
        self._fit, self._evaluator, self._chosen = fit, evaluator, chosen
        self._grid, self._budget, self._seed = grid, budget, seed
        self._alone: list[Trial] = []

    def run(self) -> Controls:
        """Measure one control after another; those the budget does not reach are left out."""
        measured, left_out = list[MeasuredControl](), list[str]()
        for kind, name, measure in self._planned():
            try:
                name, trial = measure()
            except OutOfBudget:
                left_out.append(f"{kind} {name}".strip())
            else:
                measured.append(MeasuredControl(kind, name, trial))
        return Controls(tuple(measured), tuple(left_out), self._predict(measured))

    def _planned(self) -> Iterator[tuple[str, str, Callable[[], tuple[str, Trial]]]]:
        """Yield kind, name and measurement of every control, the most telling first."""
        pool = self._evaluator.pool
        yield BASE, pool.base.label, self._base
        yield EXPERT, "", self._best_expert
        for number, task in enumerate(pool.tasks):
            if self._can_leave_out(number):
                yield WITHOUT, task.id, partial(self._without, number)
        for indices in self._drawn():
            steps = " ".join(
                str(steps[index].step)
                for steps, index in zip(pool.candidates, indices, strict=True)
            )
            yield RANDOM, steps, partial(self._random, steps, indices)

    def _choices(self) -> list[Choice]:
        """Return what the search of each fold chose."""
        return [search.chosen.result.choice for search in self._fit.searches]

    def _can_leave_out(self, task: int) -> bool:
        """Return whether the method merges what is left of every choice without an expert."""
        left = [choice.with_weight(task, 0.0).weights for choice in self._choices()]
        counts = [sum(weight != 0 for weight in weights) for weights in left]
        return not any(map(self._evaluator.method.count_problem, counts))

    def _base(self) -> tuple[str, Trial]:
        return self._evaluator.pool.base.label, self._measure_unmerged(None)

    def _best_expert(self) -> tuple[str, Trial]:
        """Measure each chosen expert alone on all tasks; each search picks its best one."""
        experts = self._evaluator.pool.experts(self._chosen)
        self._alone = [self._measure_unmerged(task) for task in range(len(experts))]
        best = max(range(len(experts)), key=lambda task: self._alone[task].accuracy)
        trials = [
            max(self._alone, key=lambda trial: search.fold.search_rows(trial).accuracy)
            for search in self._fit.searches
        ]
        return experts[best].source.label, pool_trials(trials)

    def _without(self, task: int) -> tuple[str, Trial]:
        def choose(search: FoldSearch) -> Choice:
            return search.chosen.result.choice.with_weight(task, 0.0)

        return self._evaluator.pool.tasks[task].id, self._fit.pooled_trial(choose, self._measure)

    def _random(self, steps: str, indices: tuple[int, ...]) -> tuple[str, Trial]:
        return steps, self._fit.pooled_trial(partial(self._tune, indices), self._measure)

    def _tune(self, indices: tuple[int, ...], fold_search: FoldSearch) -> Choice:
        """Tune the method for these candidates on the rows outside a fold; raises OutOfBudget."""
        evaluator = FoldEvaluator(self._evaluator, fold_search.fold, self._budget.merges)
        search = Search(evaluator, self._grid, self._budget.without_merges())
        start = search.measure_start(indices)
        try:
            return search.tune(start, _STRIDES).choice
        except OutOfBudget:
            return (search.best or start).choice

    def _drawn(self) -> Iterator[tuple[int, ...]]:
        """Yield candidates drawn at random, one of each task's, all equally likely."""
        random = np.random.default_rng(self._seed)
        counts = [len(steps) for steps in self._evaluator.pool.candidates]
        if max(counts) > 1:
            for _ in range(RANDOM_DRAWS):
                yield tuple(int(random.integers(count)) for count in counts)

    def _measure(self, choice: Choice) -> Trial:
        self._budget.check(self._evaluator, self._evaluator.recipe(choice))
        return self._evaluator.measure(choice)

    def _measure_unmerged(self, task: int | None) -> Trial:
        self._budget.check(self._evaluator, self._evaluator.unmerged_recipe(self._chosen, task))
        return self._evaluator.measure_unmerged(self._chosen, task)

    def _predict(self, measured: list[MeasuredControl]) -> float | None:
        """Predict the gain of one more expert from merges of none, one, all but one and all."""
        if any(0 in choice.weights for choice in self._choices()):
            return None
        accuracies = {len(self._chosen.indices): [self._fit.chosen().accuracy]}
        for control in measured:
            if control.kind == BASE:
                accuracies.setdefault(0, []).append(control.trial.accuracy)
            if control.kind == WITHOUT:
                size = len(self._chosen.indices) - 1
                accuracies.setdefault(size, []).append(control.trial.accuracy)
        if self._alone and len(self._chosen.indices) > 2:
            accuracies[1] = [trial.accuracy for trial in self._alone]
        return predict_gain({k: math.fsum(a) / len(a) for k, a in accuracies.items()})


_OFFSETS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def predict_gain(accuracies: dict[int, float]) -> float | None:
    """Predict what one more expert adds, from the mean accuracy by number of merged experts.

    The error is fitted as floor + tail / (experts + offset) with a tail that is not negative; three
    sizes are needed. This is a prediction for an expert like the others, not a measurement. Source:
    the merging scaling law, arXiv 2509.24244, which fits a cross-entropy loss in this form.
    """
    if len(accuracies) < 3:
        return None
    sizes = np.array(sorted(accuracies), float)
    errors = np.array([1 - accuracies[int(size)] for size in sizes])
    fits = [_fit(sizes, errors, offset) for offset in _OFFSETS]
    _, tail, offset = min(fits)
    largest = sizes[-1] + offset
    return float(tail / largest - tail / (largest + 1))


def _fit(sizes: np.ndarray, errors: np.ndarray, offset: float) -> tuple[float, float, float]:
    """Return the sum of squares, the tail and the offset of the best fit with this offset."""
    inverse = 1 / (sizes + offset)
    centred = inverse - inverse.mean()
    tail = max(0.0, float(centred @ (errors - errors.mean()) / (centred @ centred)))
    residuals = errors - errors.mean() - tail * centred
    return float(residuals @ residuals), tail, offset
