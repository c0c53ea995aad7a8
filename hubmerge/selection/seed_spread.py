"""How much a gain depends on the training seeds of the experts.

Repositories of one task and several seeds hold replicates: the same steps, trained again. The gain
is measured with every expert of the task from one seed, for each seed, in the choice and in the
rival. The variance between seeds is that of an expert; the experts of a merge are trained
independently, so their variances add up. Differences between seeds on the same rows include some
noise of these rows, so the spread is rather too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hubmerge.seed_statistics import student_quantile
from hubmerge.selection import noise
from hubmerge.selection.choice import Choice
from hubmerge.selection.cross_fit import CrossFit, FoldSearch
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.noise import Interval
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import Budget, OutOfBudget
from hubmerge.trials import Trial


@dataclass(frozen=True)
class SeedSpread:
    """The standard deviation of a gain between training seeds, and its degrees of freedom."""

    deviation: float
    freedom: int

    def widen(self, gain: Interval) -> Interval:
        """Return the gain with an interval for the same steps of experts that are trained again."""
        seeds = self.deviation * student_quantile((1 - noise.LEVEL) / 2, self.freedom)
        value, low, high = gain
        below, above = math.hypot(value - low, seeds), math.hypot(high - value, seeds)
        return value, value - below, value + above


def find_seed_spread(
    fit: CrossFit, evaluator: Evaluator, rival: str, budget: Budget
) -> SeedSpread | None:
    """Measure the gain with other seeds; None if no task has several, or the budget ends."""
    variances, freedom = [], 0
    try:
        for task in range(len(fit.pool.tasks)):
            gains = _gains_by_seed(fit, evaluator, rival, task, budget)
            if len(gains) > 1:
                mean = math.fsum(gains) / len(gains)
                squares = math.fsum((gain - mean) ** 2 for gain in gains)
                variances.append(squares / (len(gains) - 1))
                freedom += len(gains) - 1
    except OutOfBudget:
        return None
    return SeedSpread(math.sqrt(math.fsum(variances)), freedom) if freedom else None


def _gains_by_seed(
    fit: CrossFit, evaluator: Evaluator, rival: str, task: int, budget: Budget
) -> list[float]:
    """Return the gain for each seed of which a task has every step that is needed."""
    pool = fit.pool

    def measure(choice: Choice) -> Trial:
        budget.check(evaluator, evaluator.recipe(choice))
        return evaluator.measure(choice)

    def chosen(search: FoldSearch) -> Choice:
        return search.chosen.result.choice

    def last(search: FoldSearch) -> Choice:
        return search.results[rival].result.choice

    gains = []
    for seed in sorted({c.seed for c in pool.candidates[task] if c.seed is not None}):
        of_seed = [_with_seed(pool, task, seed, choose) for choose in (chosen, last)]
        if all(choose(search) for choose in of_seed for search in fit.searches):
            ours, theirs = (fit.pooled_trial(_known(choose), measure) for choose in of_seed)
            gains.append(noise.gain(ours, theirs))
    return gains


def _with_seed(
    pool: Pool, task: int, seed: int, choose: Callable[[FoldSearch], Choice]
) -> Callable[[FoldSearch], Choice | None]:
    """Return a function to the choice with a task's expert of this seed at the same step."""

    def replaced(search: FoldSearch) -> Choice | None:
        choice, candidates = choose(search), pool.candidates[task]
        step = candidates[choice.indices[task]].step
        same = [n for n, c in enumerate(candidates) if c.step == step and c.seed == seed]
        own = choice.indices[task]
        if own in same:
            return choice
        return choice.with_candidate(task, same[0]) if same else None

    return replaced


def _known(choose: Callable[[FoldSearch], Choice | None]) -> Callable[[FoldSearch], Choice]:
    def known(search: FoldSearch) -> Choice:
        choice = choose(search)
        assert choice is not None
        return choice

    return known
