"""How a choice is made: which policies run, and which of their results is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hubmerge.selection.choice import Choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import Grid
from hubmerge.selection.objective import Objective
from hubmerge.selection.policy_results import PolicyResult, PolicyResults, policy_shares
from hubmerge.selection.report import BAND, earliest_of_tied
from hubmerge.selection.search import Budget, MeasuredChoice, Search

OnResult = Callable[[str, MeasuredChoice], None]


@dataclass(frozen=True)
class Procedure:
    """The policies to run in order, the one to beat, and how to choose among their results.

    `requested` names the policy whose result is chosen, None for the best of all within `band`
    standard errors. `locked` is the choice of an earlier lock, if that is the rival. The same
    procedure can run on all rows and on some of them.
    """

    grid: Grid
    policies: tuple[str, ...]
    rival: str
    requested: str | None = None
    locked: Choice | None = None
    band: float = BAND
    exhaustive: bool = False
    objective: Objective = "mean"

    def run(
        self, evaluator: Evaluator, budget: Budget, on_result: OnResult | None = None
    ) -> PolicyResults:
        """Run every policy, one after another, as far as the budget goes."""
        search = Search(evaluator, self.grid, budget, self.exhaustive, self.objective)
        results = PolicyResults(search, self.locked)
        for name, share in policy_shares(self.policies, self.requested).items():
            if on_result is not None:
                search.on_result = partial(on_result, name)
            results.run(name, share)
        return results

    def missing(self, results: PolicyResults) -> str | None:
        """Return the name of a policy without which nothing can be chosen, None if all have run."""
        required = (self.rival, self.requested or self.rival)
        return next((name for name in required if name not in results.results), None)

    def choose(self, results: PolicyResults) -> PolicyResult:
        """Return the requested policy's result, else the earliest of the best ones."""
        if self.requested:
            return results.results[self.requested]
        policies = list(results.results.values())
        return earliest_of_tied(policies, results.search.pool, self.band, self.objective)
