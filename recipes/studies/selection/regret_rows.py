"""The searches whose regret is compared, on one pool and one method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubmerge.choosing.merge_selection import PreparedSelection
from hubmerge.reproduce.units.merges import Evaluators
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.grids import find_grid
from hubmerge.selection.moves import step_moves
from hubmerge.selection.policies import average_last, earliest_best
from hubmerge.selection.policy_results import PolicyResult, PolicyResults, policy_shares
from hubmerge.selection.report import BAND, earliest_of_tied
from hubmerge.selection.search import Budget, MeasuredChoice, OutOfBudget, Search
from hubmerge.selection.surrogate_search import search_by_surrogate
from recipes.studies.selection.null_space import null_space
from recipes.studies.selection.proxies import PROXIES

Row = dict[str, Any]
_STARTS = ("last", "early-stop", "best-expert", "proxy")


class RegretRows:
    """Rows of results; what is in the log is not evaluated again."""

    def __init__(self, prepared: PreparedSelection, log: Path) -> None:
        self._prepared, self._evaluators = prepared, Evaluators(prepared, log)

    def measure(self, part: str, merges: int) -> Iterator[Row]:
        """The rows of one part, within a budget of merges where it has one."""
        whole = {
            "proxies": self.proxies,
            "null-space": self.null_space,
            "averages": self.averages,
            "grid": self.grid,
        }
        if part in whole:
            yield from whole[part]()
        else:
            yield from {"search": self.search, "select": self.select, "long": self.long}[part](
                merges
            )

    def select(self, merges: int) -> Iterator[Row]:
        """Every policy within one budget, as `hubmerge select` runs them.

        `select` is its choice.
        """
        results = PolicyResults(self._search(merges))
        for name, share in policy_shares(self._prepared.policies).items():
            results.run(name, share)
            if name in results.results:
                yield self._row(name, results.results[name].result, results.search)
        policies = list(results.results.values())
        chosen = earliest_of_tied(policies, self._prepared.pool, BAND)
        yield self._row("select", chosen.result, results.search)

    def search(self, merges: int) -> Iterator[Row]:
        """The starts and `coordinate` within one budget: one step per task, without weights."""
        results = PolicyResults(self._search(merges))
        for name in self._prepared.policies:
            if name in _STARTS or name == "coordinate":
                results.run(name)
        yield self._row("search", _best_of_steps(results), results.search)

    def proxies(self) -> Iterator[Row]:
        """Every proxy that evaluates no merge, and each with its scale and density tuned."""
        for name, choose in PROXIES.items():
            search = self._search(None)
            choice = choose(self._prepared.pool, search.evaluator.merger, search.grid)
            yield from self._proxy_rows(name, "no data", choice, search)

    def null_space(self) -> Iterator[Row]:
        """The proxy that needs inputs of each task, but no labels, without and with tuning."""
        choice = null_space(self._prepared, self._evaluators.merger)
        # After the experts, as a search loads its merges into the same model.
        yield from self._proxy_rows("null space", "no labels", choice, self._search(None))

    def long(self, merges: int) -> Iterator[Row]:
        """The best steps that a longer search finds; it goes on until its merges are spent."""
        search = self._search(merges)
        results = PolicyResults(search)
        for name in self._prepared.policies:
            if name in (*_STARTS, "uniform", "coordinate"):
                results.run(name)
        best = _best_of_steps(results)
        search.reset_best(best)
        try:
            best = search_by_surrogate(search, best, step_moves, patience=merges)
        except OutOfBudget:
            assert search.best is not None
            best = search.best
        yield self._row("long", best, search)

    def averages(self) -> Iterator[Row]:
        """Means of steps, plain and by training loss, and the choice that both start from."""
        search = self._search(None)
        results = PolicyResults(search)
        for name in self._prepared.policies:
            if name in _STARTS:
                results.run(name)
        start = _best_of_steps(results)
        yield self._row("start of averages", start, search)
        for by_loss, name in ((False, "plain averages"), (True, "averages by loss")):
            search.reset_best(start)
            yield self._row(name, average_last(search, start, by_loss), search)

    def grid(self) -> Iterator[Row]:
        """The best common step with any point of the grid, evaluated on all rows."""
        search = self._search(None)
        defaults = self._prepared.method.params().model_dump()
        measured = [
            search.measure_all_rows(plain_choice(indices, {**defaults, **point}))
            for indices in self._prepared.pool.common_steps()
            for point in search.grid.points
        ]
        yield self._row("grid", earliest_best(search, measured), search)

    def _proxy_rows(
        self, name: str, needs: str, choice: Choice | None, search: Search
    ) -> Iterator[Row]:
        if choice is not None:
            measured = search.measure_all_rows(choice)
            yield self._row(f"{name} ({needs})", measured, search)
            yield self._row(f"{name} (tuned)", search.tune(measured, (2, 1)), search)

    def _search(self, merges: int | None) -> Search:
        evaluator = self._evaluators.new_validation()
        return Search(evaluator, find_grid(self._prepared.method.name), Budget(merges))

    def _row(self, policy: str, measured: MeasuredChoice, search: Search) -> Row:
        choice, evaluator = measured.choice, search.evaluator
        return {
            "policy": policy,
            "validation": measured.accuracy,
            "test": self._evaluators.test.measure(choice).accuracy,
            "steps": self._prepared.pool.steps(choice),
            "weights": choice.weights,
            "params": {k: v for k, v in choice.params if k in search.grid.values},
            "merges": evaluator.merges,
            "evaluations": sum(evaluator.rows_by_recipe.values()) / evaluator.rows,
        }


def _best_of_steps(results: PolicyResults) -> MeasuredChoice:
    def is_plain(policy: PolicyResult) -> bool:
        return set(policy.result.choice.weights) == {1.0}

    plain = [policy.result for policy in results.results.values() if is_plain(policy)]
    return earliest_best(results.search, plain)
