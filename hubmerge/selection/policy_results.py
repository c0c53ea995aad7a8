"""Runs the policies one after another; later ones start from the results of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from hubmerge.selection import policies
from hubmerge.selection.policies import best_expert, early_stop
from hubmerge.selection.pool import Choice, Pool
from hubmerge.selection.proxy import proxy
from hubmerge.selection.search import MeasuredChoice, OutOfBudget, Search

LAST, LOCKED = "last", "locked"


@dataclass(frozen=True)
class PolicyResult:
    """The best choice of one policy, and how many merges had been requested by then."""

    name: str
    result: MeasuredChoice
    evaluations: int


class PolicyResults:
    """The results of policies by name, in the order in which they ran.

    `uniform` holds the tuned choice of every common step; `cut` names the policies that the budget
    ended early.
    """

    def __init__(self, search: Search, locked: Choice | None = None) -> None:
        self.search, self._locked = search, locked
        self.results: dict[str, PolicyResult] = {}
        self.uniform: list[MeasuredChoice] = []
        self.cut: list[str] = []

    def run(self, name: str) -> None:
        """Run one policy; if the budget ends, the best choice so far is its result."""
        self.search.reset_best()
        try:
            result = _POLICIES[name](self)
        except OutOfBudget:
            result = self.search.best
            self.cut.append(name)
        if result is not None:
            self.results[name] = PolicyResult(name, result, self.search.evaluator.merges)

    def measure_neighbours(self, chosen: MeasuredChoice) -> None:
        """Measure the next earlier and later step of each task, as far as the budget allows.

        This does not change the choice; it shows how much depends on it.
        """
        for task, index in enumerate(chosen.choice.indices):
            for neighbour in (index - 1, index + 1):
                if 0 <= neighbour < len(self.search.pool.candidates[task]):
                    with suppress(OutOfBudget):
                        self.search.better_of(chosen.choice.with_candidate(task, neighbour), chosen)

    def own_accuracy(self, task: int, index: int) -> float:
        """Return a candidate's accuracy on its own task, measured if it was not recorded."""
        recorded = self.search.pool.candidates[task][index].own_accuracy
        return recorded if recorded is not None else self.search.measure_expert(task, index)

    def best(self, *names: str) -> MeasuredChoice | None:
        """Return the best result of these policies, or of all if no name is given."""
        wanted = [r.result for name, r in self.results.items() if not names or name in names]
        return max(wanted, key=lambda measured: measured.accuracy, default=None)


def policy_order(pool: Pool, requested: str | None = None, is_locked: bool = False) -> list[str]:
    """Return the policies in the order to run: the baselines, then the requested one, then all.

    Repositories with one checkpoint each leave no step to choose, so only weights and `rescale` are
    tried. If no run was stopped early, the search for separate steps starts from the best common
    step, so `uniform` runs first.
    """
    baselines = [LAST, *([LOCKED] if is_locked else [])]
    if all(len(steps) == 1 for steps in pool.candidates):
        return [*baselines, "weights", "rescale"]
    stopped = all(any(candidate.stopped_early for candidate in steps) for steps in pool.candidates)
    starts = (
        ["early-stop", "best-expert", "proxy"] if stopped else ["best-expert", "proxy", "uniform"]
    )
    search_order = [*starts, "coordinate", "uniform", "weights", "joint"]
    starting_points = {
        "coordinate": starts,
        "weights": ["uniform"],
        "joint": [*starts, "coordinate"],
        "rescale": [],
    }
    first: list[str] = []
    if requested in {*search_order, *starting_points}:
        first = [*starting_points.get(requested, []), requested]
    return list(dict.fromkeys([*baselines, *first, *search_order]))


def _locked(results: PolicyResults) -> MeasuredChoice | None:
    return results.search.measure_all_rows(results._locked) if results._locked else None


def _proxy(results: PolicyResults) -> MeasuredChoice | None:
    search = results.search
    choice = proxy(search.pool, search.evaluator.merger, search.grid)
    return search.measure_all_rows(choice) if choice else None


def _uniform(results: PolicyResults) -> MeasuredChoice | None:
    for measured in policies.uniform(results.search):
        results.uniform.append(measured)
    # The last step ran first: reversed, the earliest of equals wins.
    earliest_first = reversed(results.uniform)
    return max(earliest_first, key=lambda measured: measured.accuracy, default=None)


def _starting_from(
    policy: Callable[[Search, MeasuredChoice], MeasuredChoice], *starts: str
) -> Callable[[PolicyResults], MeasuredChoice | None]:
    """Make a policy start from the best result of `starts`, or of all if none of them has run."""

    def run(results: PolicyResults) -> MeasuredChoice | None:
        start = results.best(*starts) or results.best()
        return policy(results.search, start) if start else None

    return run


_POLICIES: Mapping[str, Callable[[PolicyResults], MeasuredChoice | None]] = {
    LAST: lambda results: policies.last(results.search),
    LOCKED: _locked,
    "early-stop": lambda results: early_stop(results.search),
    "best-expert": lambda results: best_expert(results.search, results.own_accuracy),
    "proxy": _proxy,
    "coordinate": _starting_from(
        policies.coordinate, LAST, "early-stop", "best-expert", "proxy", "uniform"
    ),
    "uniform": _uniform,
    "weights": _starting_from(policies.weights, "uniform"),
    "joint": _starting_from(policies.joint),
    "rescale": _starting_from(policies.rescale, LAST),
}

POLICIES = tuple(_POLICIES)
