"""Cross-fitting: the gain of a selection, from choices that were made without the rows judged on.

The best of many noisy results looks better than it is, and a search that climbed on some rows has
followed their noise: neither a correction over the logged trials nor choosing again among them is
free of that. So the whole procedure runs again for each fold, on the rows outside it only, and its
choice and its rival, which was tuned on the same rows, are compared on the fold. Every row serves
once. Source: Stone, Cross-validatory choice and assessment (J. R. Stat. Soc. B 36, 1974); for the
name Chernozhukov et al., Double/debiased machine learning (arXiv 1608.00060), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hubmerge.selection.choice import Choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.fold_gain import fold_gain
from hubmerge.selection.folds import MIN_ROWS, Fold, FoldEvaluator, folds, pool_trials
from hubmerge.selection.noise import Interval
from hubmerge.selection.policy_results import PolicyResult
from hubmerge.selection.pool import Pool
from hubmerge.selection.procedure import OnResult, Procedure
from hubmerge.selection.search import Budget
from hubmerge.trials import Trial

FOLDS = 2


@dataclass(frozen=True)
class FoldSearch:
    """The search on the rows outside a fold: the result of each policy by name, and its choice."""

    fold: Fold
    results: Mapping[str, PolicyResult]
    chosen: PolicyResult


@dataclass(frozen=True)
class CrossFit:
    """The searches of all folds among the candidates of `pool`; `measure` measures all rows."""

    pool: Pool
    measure: Callable[[Choice], Trial]
    searches: tuple[FoldSearch, ...]

    def chosen(self) -> Trial:
        """Return the pooled trial of what each search chose, on the rows that it had not seen."""
        return self.pooled_trial(lambda search: search.chosen.result.choice)

    def policy(self, name: str) -> Trial | None:
        """Return the pooled trial of one policy, None if the budget did not reach it."""
        if any(name not in search.results for search in self.searches):
            return None
        return self.pooled_trial(lambda search: search.results[name].result.choice)

    def pooled_trial(
        self,
        choose: Callable[[FoldSearch], Choice],
        measure: Callable[[Choice], Trial] | None = None,
    ) -> Trial:
        """Return the pooled trial of a choice for each search, measured on all rows."""
        measure = measure or self.measure
        return pool_trials([measure(choose(search)) for search in self.searches])

    def gains(self, rival: str, chosen: str, seed: int) -> dict[str, Interval]:
        """Return the gain over the rival of each policy that all searches reached, by name.

        For `chosen` it is that of what each search chose, whichever policy found it: that is the
        procedure which made the choice. The rival itself gains nothing.
        """
        names = [name for name in self.searches[0].results if name != rival]
        trials = {name: self.policy(name) for name in names}
        if chosen != rival:
            trials[chosen] = self.chosen()
        gains = {name: self.gain(trial, rival, seed) for name, trial in trials.items() if trial}
        return {rival: (0.0, 0.0, 0.0), **gains}

    def gain(self, trial: Trial, rival: str, seed: int) -> Interval:
        """Return the gain of a pooled trial over the rival with the ends of its interval."""
        baseline = self.policy(rival)
        assert baseline is not None  # cross_fit() checks it
        return fold_gain(trial, baseline, seed)


def cross_fit(
    procedure: Procedure,
    evaluator: Evaluator,
    budgets: Callable[[int], tuple[Budget, int | None]],
    on_result: OnResult | None = None,
    count: int = FOLDS,
) -> CrossFit | None:
    """Run the procedure once for each fold.

    `budgets` returns the budget of a fold's search by its number, and how many merges may have been
    measured in all when it ends. Returns None if a task has too few rows to divide, or if the
    budget does not reach the policies that are compared.
    """
    if min(evaluator.row_counts.values()) < MIN_ROWS:
        return None
    searches = []
    for fold in folds(count):
        budget, limit = budgets(fold.number)
        results = procedure.run(FoldEvaluator(evaluator, fold, limit), budget, on_result)
        if procedure.missing(results):
            return None
        searches.append(FoldSearch(fold, results.results, procedure.choose(results)))
    return CrossFit(evaluator.pool, evaluator.measure, tuple(searches))
