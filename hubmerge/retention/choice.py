"""Which names stay: whatever has a reason, then of the rest as much as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hubmerge.lock import Lock
from hubmerge.refs import series_of
from hubmerge.retention.evidence import Groups, distances

Kind = Literal["tag", "branch"]


@dataclass(frozen=True)
class Named:
    """A tag or branch, its commit, and what that holds: the SHA of a content -> its bytes.

    `step` is None for a name that speaks of no step, which is never dropped. `own` is the expert's
    own validation accuracy, `stopped` says that early stopping ended its run here.
    """

    repo: str
    name: str
    kind: Kind
    sha: str
    contents: Mapping[str, int] = field(hash=False)
    step: int | None = None
    own: float | None = None
    stopped: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a name stays, and why."""

    repo: str
    name: str
    kind: Kind
    sha: str
    contents: Mapping[str, int] = field(hash=False)
    keep: bool
    reasons: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.repo}@{self.name}"

    @property
    def size(self) -> int:
        """Bytes of its files, whoever shares them."""
        return sum(self.contents.values())


def stored(held: Iterable[Named | Verdict]) -> int:
    """The bytes that these names take together: a repository stores a content once."""
    contents = {(one.repo, sha): size for one in held for sha, size in one.contents.items()}
    return sum(contents.values())


def choose(
    named: Collection[Named],
    locks: Mapping[str, Lock],
    groups: Groups,
    budget: int | None = None,
) -> list[Verdict]:
    """Keep whatever has a reason, then of the rest as much as the budget (bytes) allows.

    The rest goes in the order of least regret, and ends with the first that does not fit: so a
    larger budget never drops what a smaller one keeps. Without a budget nothing of the rest stays;
    what has a reason stays even over the budget. `locks` are by their SHA-256, `groups` are trials
    that can be compared, best first.
    """
    ordered = sorted(named, key=lambda one: (one.repo, one.step or 0, one.kind, one.name))
    reasons = reasons_to_keep(ordered, locks, groups)
    kept = [one for one in ordered if reasons[one]]
    rest = [one for one in ordered if not reasons[one]]
    behind = distances(groups)
    fitting = set[Named]() if budget is None else _fitting(kept, rest, behind, budget)
    return [
        Verdict(
            *(one.repo, one.name, one.kind, one.sha, one.contents),
            keep=bool(reasons[one]) or one in fitting,
            reasons=tuple(reasons[one]) or tuple(_of_the_rest(one, behind, one in fitting)),
        )
        for one in ordered
    ]


def reasons_to_keep(
    named: Sequence[Named], locks: Mapping[str, Lock], groups: Groups
) -> dict[Named, list[str]]:
    """Why each name must stay, the most telling first; none where the budget decides."""
    told: dict[str, dict[str, None]] = {}  # a set that keeps its order
    for digest, lock in sorted(locks.items()):
        for sha, what in {**neighbours(lock), **references(lock)}.items():
            told.setdefault(sha, {})[f"{what} of lock {digest[:8]}"] = None
    for (method, *_), trials in groups.items():
        for part in trials[0].parts:
            told.setdefault(part.sha, {})[f"best for {method}"] = None
    own = dict(_of_its_series(named))
    return {one: [*told.get(one.sha, ()), *own[one]] for one in named}


def references(lock: Lock) -> dict[str, str]:
    """Every commit that a lock needs to be rebuilt and told -> what it is to the lock."""
    order = sorted(lock.picks, key=lambda pick: pick.policy != lock.chosen)
    found: dict[str, str] = {}
    for pick in order:
        for expert in pick.experts:
            found.setdefault(
                expert.sha, "choice" if pick.policy == lock.chosen else f"pick {pick.policy}"
            )
    for pin in lock.experts:
        found.setdefault(pin.source.sha, "expert")
    found.setdefault(lock.base.source.sha, "base")
    for expert in (expert for pick in order for expert in pick.experts):
        if expert.last_sha:  # what the gain that its card tells is measured against
            found.setdefault(expert.last_sha, "last step")
    return found


def neighbours(lock: Lock) -> dict[str, str]:
    """The steps next to each chosen one that are as good, for all that was measured."""
    found = {}
    for task, expert in zip(lock.tasks, lock.pick().experts, strict=True):
        swaps = sorted(lock.swaps.get(task.id, ()), key=lambda swap: (swap.step, swap.sha))
        for place in [at for at, swap in enumerate(swaps) if swap.sha == expert.sha]:
            beside = [*swaps[max(place - 1, 0) : place], *swaps[place + 1 : place + 2]]
            found.update({swap.sha: "tied with the choice" for swap in beside if swap.tied})
    return found


def _of_its_series(named: Sequence[Named]) -> Iterator[tuple[Named, list[str]]]:
    """What a series of steps is not left without, whatever it is merged with."""
    series = {(one.repo, series_of(one.name)) for one in named}
    for which in series:
        its = [one for one in named if (one.repo, series_of(one.name)) == which]
        last = max((one.step for one in its if one.step is not None), default=None)
        measured = [(-one.own, one.step) for one in its if one.own is not None]
        best = min(measured, default=None, key=lambda pair: (pair[0], pair[1] or 0))
        for one in its:
            if one.step is None:
                yield one, ["no step"]
                continue
            best_here = best is not None and one.own is not None and (-one.own, one.step) == best
            said = {"early stop": one.stopped, "best expert": best_here, "last": one.step == last}
            yield one, [reason for reason, is_so in said.items() if is_so]


def _fitting(
    kept: Sequence[Named], rest: Sequence[Named], behind: Mapping[str, float], budget: int
) -> set[Named]:
    """Those of the rest that fit beside what is kept, by least regret, then by own accuracy."""
    held = list(kept)
    for one in sorted(rest, key=lambda one: (behind.get(one.sha, math.inf), -(one.own or 0.0))):
        if stored([*held, one]) > budget:
            break
        held.append(one)
    return set(held[len(kept) :])


def _of_the_rest(one: Named, behind: Mapping[str, float], fits: bool) -> Iterator[str]:
    if fits:
        yield "fits the budget"
    loss = behind.get(one.sha)
    yield "in no measured merge" if loss is None else f"{100 * loss:.1f} points behind the best"
