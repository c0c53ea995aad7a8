"""The policies side by side: each is run in its turn, from what those before it have found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from hubmerge.selection import policies
from hubmerge.selection.policies import best_expert, early_stop
from hubmerge.selection.pool import Choice, Pool
from hubmerge.selection.proxy import proxy
from hubmerge.selection.search import Found, OutOfBudget, Search

LAST, LOCKED = "last", "locked"


@dataclass(frozen=True)
class Policy:
    """What one policy found, and how many merges had been asked for when it had."""

    name: str
    found: Found
    evaluations: int


class Board:
    """What policies have found, by name, in the order in which they were run.

    `uniform` is the best of every common step; `cut` names the policies that the budget ended.
    """

    def __init__(self, search: Search, locked: Choice | None = None) -> None:
        self.search, self._locked = search, locked
        self.found: dict[str, Policy] = {}
        self.uniform: list[Found] = []
        self.cut: list[str] = []

    def run(self, name: str) -> None:
        """Run one policy; what it had found when the budget ended counts."""
        self.search.forget_best()
        try:
            found = _POLICIES[name](self)
        except OutOfBudget:
            found = self.search.best
            self.cut.append(name)
        if found is not None:
            self.found[name] = Policy(name, found, self.search.arena.merges)

    def look_around(self, chosen: Found) -> None:
        """Ask the next earlier and later step of each task, as far as the budget goes.

        It changes nothing about the choice: it tells how much hangs on it.
        """
        for task, place in enumerate(chosen.choice.places):
            for beside in (place - 1, place + 1):
                if 0 <= beside < len(self.search.pool.candidates[task]):
                    with suppress(OutOfBudget):
                        self.search.better(chosen.choice.at(task, beside), chosen)

    def own(self, task: int, place: int) -> float:
        """A candidate's own validation accuracy, measured if nobody recorded it."""
        known = self.search.pool.candidates[task][place].own
        return known if known is not None else self.search.alone(task, place)

    def best(self, *names: str) -> Found | None:
        """The best that these policies have found, or any of them if none is named."""
        wanted = [one.found for name, one in self.found.items() if not names or name in names]
        return max(wanted, key=lambda one: one.accuracy, default=None)


def order(pool: Pool, asked: str | None = None, is_locked: bool = False) -> list[str]:
    """The policies in the order to run them: the rival first, then what was asked for, then all.

    Repositories of one checkpoint each leave no steps to choose: there, early stopping can only be
    made up for. Where no run was stopped early, the best common step is what a search for steps of
    their own starts from, and is looked for first.
    """
    rivals = [LAST, *([LOCKED] if is_locked else [])]
    if all(len(its) == 1 for its in pool.candidates):
        return [*rivals, "weights", "rescale"]
    stopped = all(any(one.stopped for one in its) for its in pool.candidates)
    starts = (
        ["early-stop", "best-expert", "proxy"] if stopped else ["best-expert", "proxy", "uniform"]
    )
    every = [*starts, "coordinate", "uniform", "weights", "joint"]
    needs = {
        "coordinate": starts,
        "weights": ["uniform"],
        "joint": [*starts, "coordinate"],
        "rescale": [],
    }
    first = [*needs.get(asked, []), asked] if asked in {*every, *needs} else []
    return list(dict.fromkeys([*rivals, *first, *every]))


def _locked(board: Board) -> Found | None:
    return board.search.whole(board._locked) if board._locked else None


def _proxy(board: Board) -> Found | None:
    search = board.search
    choice = proxy(search.pool, search.arena.blender, search.grid)
    return search.whole(choice) if choice else None


def _uniform(board: Board) -> Found | None:
    for found in policies.uniform(board.search):
        board.uniform.append(found)
    return max(board.uniform, key=lambda one: one.accuracy, default=None)


def _from(
    policy: Callable[[Search, Found], Found], *starts: str
) -> Callable[[Board], Found | None]:
    """A policy that goes on from the best of others, or of all if none of those has been run."""

    def run(board: Board) -> Found | None:
        start = board.best(*starts) or board.best()
        return policy(board.search, start) if start else None

    return run


_POLICIES: Mapping[str, Callable[[Board], Found | None]] = {
    LAST: lambda board: policies.last(board.search),
    LOCKED: _locked,
    "early-stop": lambda board: early_stop(board.search),
    "best-expert": lambda board: best_expert(board.search, board.own),
    "proxy": _proxy,
    "coordinate": _from(policies.coordinate, LAST, "early-stop", "best-expert", "proxy", "uniform"),
    "uniform": _uniform,
    "weights": _from(policies.weights, "uniform"),
    "joint": _from(policies.joint),
    "rescale": _from(policies.rescale, LAST),
}

POLICIES = tuple(_POLICIES)
