"""Runs the policies one after another; later ones start from the results of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from hubmerge.merging.registry import Method
from hubmerge.selection import policies
from hubmerge.selection.choice import Choice
from hubmerge.selection.objective import dominates
from hubmerge.selection.policies import best_expert, early_stop
from hubmerge.selection.pool import Pool
from hubmerge.selection.proxy import proxy
from hubmerge.selection.search import MeasuredChoice, OutOfBudget, Search
from hubmerge.weights.match_options import DEFAULT_OPTIONS

LAST, LOCKED, UNIFORM, LAYERS = "last", "locked", "uniform", "layers"
BY_LOSS = "average-by-loss"
FRONT, MOST_ON_FRONT = "front-", 12
_PARTS = {"coordinate": 4, UNIFORM: 3, "weights": 2, "joint": 2, "rescale": 2}  # others get 1
_COMPARED = {LAST: 0.5, LOCKED: 0.5, UNIFORM: 0.5}


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

    def run(self, name: str, share: float = 1.0) -> None:
        """Run one policy on a share (0 to 1) of what is left of the budget.

        If that ends, the best choice so far is its result; there is none if it has not measured any
        merge of its own. A policy that starts from the result of another one is never worse than
        that.
        """
        self.search.reset_best()
        merges = self.search.evaluator.merges
        self.search.budget.allot(merges, share)
        try:
            result = _POLICIES[name](self)
        except OutOfBudget:
            has_measured = self.search.evaluator.merges > merges
            result = self.search.best if has_measured else None
            self.cut.append(name)
            if name == UNIFORM and result is not None:
                self.uniform.append(result)
        if result is not None:
            self.results[name] = PolicyResult(name, result, self.search.evaluator.merges)

    def add_front(self) -> None:
        """Add, as results `front-1` and so on, all trials that no other one is as good as.

        That is: no other trial is better on some task and worse on none. By mean accuracy, the best
        first, at most `MOST_ON_FRONT`; each can be built like the choice of a policy.
        """
        complete = [
            MeasuredChoice(choice, trial)
            for choice, trial in self.search.trials.items()
            if trial.is_complete
        ]
        front = [
            measured
            for measured in complete
            if not any(dominates(other.trial, measured.trial) for other in complete)
        ]
        front.sort(key=self.search.rank, reverse=True)
        different = {tuple(sorted(m.trial.accuracies.items())): m for m in reversed(front)}
        best_first = list(different.values())[::-1][:MOST_ON_FRONT]
        for number, measured in enumerate(best_first, 1):
            name = f"{FRONT}{number}"
            self.results[name] = PolicyResult(name, measured, self.search.evaluator.merges)

    def measure_neighbours(self, chosen: MeasuredChoice) -> None:
        """Measure the next earlier and later step of each task, as far as the budget allows.

        This does not change the choice; it shows how much depends on it.
        """
        for task, index in enumerate(chosen.choice.indices):
            for neighbour in (index - 1, index + 1) if chosen.choice.weights[task] else ():
                if 0 <= neighbour < len(self.search.pool.candidates[task]):
                    with suppress(OutOfBudget):
                        self.search.better_of(chosen.choice.with_candidate(task, neighbour), chosen)

    def own_accuracy(self, task: int, index: int) -> float:
        """Return a candidate's accuracy on its own task, measured if it was not recorded.

        All steps of a task are measured if one is not recorded: what a run trained elsewhere
        recorded may be another metric.
        """
        recorded = [candidate.own_accuracy for candidate in self.search.pool.candidates[task]]
        own = None if None in recorded else recorded[index]
        return own if own is not None else self.search.measure_expert(task, index)

    def best(self, *names: str) -> MeasuredChoice | None:
        """Return the best result of these policies, or of all if no name is given."""
        wanted = [r.result for name, r in self.results.items() if not names or name in names]
        return policies.earliest_best(self.search, wanted) if wanted else None


def policy_shares(policies: Sequence[str], requested: str | None = None) -> dict[str, float]:
    """Return, by policy, its share of what the policies before it have left of the budget.

    What a policy does not use goes to those after it. A requested policy gets as much as all others
    together. What others are compared with, the rivals and the best common step, may use half of
    what is left: a gain over merges that were not tuned would be none.
    """
    parts = [_PARTS.get(name, 1) for name in policies]
    if requested in policies:
        number = policies.index(requested)
        parts[number] = max(sum(parts) - parts[number], parts[number])
    shares = {name: parts[n] / sum(parts[n:]) for n, name in enumerate(policies)}
    return {name: max(share, _COMPARED.get(name, 0.0)) for name, share in shares.items()}


def policy_order(pool: Pool, requested: str | None = None, is_locked: bool = False) -> list[str]:
    """Return the policies in the order to run: the baselines, then the requested one, then all.

    Steps are averaged, and experts left out, only where no task has a head of its own. Repositories
    with one checkpoint each leave no step to choose, so only weights and `rescale` are
    tried. If no run was stopped early, the search for separate steps starts from the best common
    step, so `uniform` runs first.
    """
    baselines = [LAST, *([LOCKED] if is_locked else [])]
    if all(len(steps) == 1 for steps in pool.candidates):
        return [*baselines, "weights", "rescale", *([LAYERS] if requested == LAYERS else [])]
    stopped = all(any(candidate.stopped_early for candidate in steps) for steps in pool.candidates)
    starts = (
        ["early-stop", "best-expert", "proxy"] if stopped else ["best-expert", "proxy", "uniform"]
    )
    average = ["average-last"] if can_average(pool) else []
    soup = ["greedy-soup"] if can_leave_out(pool) else []
    search_order = [*starts, "coordinate", "uniform", *average, *soup, "weights", "joint"]
    starting_points = {
        "coordinate": starts,
        "average-last": starts,
        "greedy-soup": [*starts, "coordinate"],
        "weights": ["uniform"],
        "joint": [*starts, "coordinate"],
        LAYERS: [*starts, "coordinate"],
        BY_LOSS: starts,
        "rescale": [],
    }
    first: list[str] = []
    if requested in {*search_order, LAYERS, BY_LOSS, "rescale"}:
        first = [*starting_points.get(requested, []), requested]
    return list(dict.fromkeys([*baselines, *first, *search_order]))


def can_leave_out(pool: Pool) -> bool:
    """Return whether a task can be measured without its expert: its head is not the expert's."""
    return all(task.spec.head != "trained" for task in pool.tasks) and len(pool.tasks) > 2


def can_scale_layers(pool: Pool, method: Method) -> bool:
    """Return whether early, middle and late layers can have a scale each."""
    return "scale" in method.params.model_fields and pool.layer_count >= policies.GROUPS


def can_average(pool: Pool) -> bool:
    """Return whether the mean of several steps can be measured and merged.

    It has no head and no vocabulary of its own, and the steps must be those of one repository.
    """
    if pool.options != DEFAULT_OPTIONS or any(task.spec.head == "trained" for task in pool.tasks):
        return False
    names = [[candidate.source.name for candidate in steps] for steps in pool.candidates]
    return any(len(set(steps)) < len(steps) for steps in names)


def has_losses(pool: Pool) -> bool:
    """Return whether training recorded the loss of two steps of an expert or more."""
    return any(sum(step.loss is not None for step in steps) > 1 for steps in pool.candidates)


def _locked(results: PolicyResults) -> MeasuredChoice | None:
    return results.search.measure_all_rows(results._locked) if results._locked else None


def _proxy(results: PolicyResults) -> MeasuredChoice | None:
    search = results.search
    choice = proxy(search.pool, search.evaluator.merger, search.grid)
    return search.measure_all_rows(choice) if choice else None


def _uniform(results: PolicyResults) -> MeasuredChoice | None:
    for measured in policies.uniform(results.search):
        results.uniform.append(measured)
    return policies.earliest_best(results.search, results.uniform) if results.uniform else None


def _starting_from(
    policy: Callable[[Search, MeasuredChoice], MeasuredChoice], *starts: str
) -> Callable[[PolicyResults], MeasuredChoice | None]:
    """Make a policy start from the best result of `starts`, or of all if none of them has run."""

    def run(results: PolicyResults) -> MeasuredChoice | None:
        start = results.best(*starts) or results.best()
        if start is None:
            return None
        results.search.reset_best(start)
        return policy(results.search, start)

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
    UNIFORM: _uniform,
    "average-last": _starting_from(policies.average_last),
    BY_LOSS: _starting_from(policies.average_by_loss),
    "greedy-soup": _starting_from(policies.greedy_soup),
    "weights": _starting_from(policies.weights, "uniform"),
    "joint": _starting_from(policies.joint),
    LAYERS: _starting_from(policies.layers),
    "rescale": _starting_from(policies.rescale, LAST),
}

POLICIES = tuple(_POLICIES)
