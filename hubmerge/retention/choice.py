"""Which refs to keep: those with a reason, then as many of the others as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hubmerge.lock import Lock
from hubmerge.refs import series_of
from hubmerge.retention.evidence import Groups, accuracy_gaps

RefKind = Literal["tag", "branch"]


@dataclass(frozen=True)
class RefInfo:
    """A tag or branch, its commit, and the contents of its files: SHA -> size in bytes.

    `step` is None if the name is not a step; such a ref is never dropped. `own_accuracy` is the
    validation accuracy on the expert's own task; `stopped_early` is true if early stopping ended
    the run here.
    """

    repo: str
    name: str
    kind: RefKind
    sha: str
    contents: Mapping[str, int] = field(hash=False)
    step: int | None = None
    own_accuracy: float | None = None
    stopped_early: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether to keep a ref, and why."""

    repo: str
    name: str
    kind: RefKind
    sha: str
    contents: Mapping[str, int] = field(hash=False)
    keep: bool
    reasons: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.repo}@{self.name}"

    @property
    def size(self) -> int:
        """Bytes of its files, including those that other refs share."""
        return sum(self.contents.values())


def stored_bytes(refs: Iterable[RefInfo | Verdict]) -> int:
    """Return the bytes that these refs take together: a repository stores a content once."""
    contents = {(ref.repo, sha): size for ref in refs for sha, size in ref.contents.items()}
    return sum(contents.values())


def choose(
    refs: Collection[RefInfo],
    locks: Mapping[str, Lock],
    groups: Groups,
    budget: int | None = None,
    published: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """Keep every ref that has a reason, then as many of the others as the budget (bytes) allows.

    The others are added by smallest accuracy gap, and the first that does not fit ends the list,
    even if a smaller one after it would fit. So a larger budget never drops what a smaller one
    keeps. Without a budget none of the others are kept; refs with a reason are kept even if they
    exceed the budget. `locks` are by their SHA-256; `groups` are comparable trials, best first;
    `published` maps the commits that models on the Hub need to their role.
    """
    ordered = sorted(refs, key=lambda ref: (ref.repo, ref.step or 0, ref.kind, ref.name))
    reasons = reasons_to_keep(ordered, locks, groups, published)
    required = [ref for ref in ordered if reasons[ref]]
    optional = [ref for ref in ordered if not reasons[ref]]
    gaps = accuracy_gaps(groups)
    fitting = set[RefInfo]() if budget is None else _fit_budget(required, optional, gaps, budget)
    return [
        Verdict(
            *(ref.repo, ref.name, ref.kind, ref.sha, ref.contents),
            keep=bool(reasons[ref]) or ref in fitting,
            reasons=tuple(reasons[ref]) or tuple(_budget_reasons(ref, gaps, ref in fitting)),
        )
        for ref in ordered
    ]


def reasons_to_keep(
    refs: Sequence[RefInfo],
    locks: Mapping[str, Lock],
    groups: Groups,
    published: Mapping[str, str] | None = None,
) -> dict[RefInfo, list[str]]:
    """Return the reasons to keep each ref, the strongest first; empty if the budget decides."""
    by_commit: dict[str, dict[str, None]] = {}  # a set that keeps its order
    for digest, lock in sorted(locks.items()):
        for sha, role in {**tied_neighbours(lock), **required_commits(lock)}.items():
            by_commit.setdefault(sha, {})[f"{role} of lock {digest[:8]}"] = None
    for sha, role in (published or {}).items():
        by_commit.setdefault(sha, {})[role] = None
    for (method, *_), trials in groups.items():
        for part in trials[0].parts:
            by_commit.setdefault(part.commit, {})[f"best for {method}"] = None
    by_ref = dict(_series_reasons(refs))
    return {ref: [*by_commit.get(ref.sha, ()), *by_ref[ref]] for ref in refs}


def required_commits(lock: Lock) -> dict[str, str]:
    """Return every commit that a lock needs for rebuilding and for its card, with its role."""
    picks = sorted(lock.picks, key=lambda pick: pick.policy != lock.chosen)
    roles: dict[str, str] = {}
    for pick in picks:
        role = "choice" if pick.policy == lock.chosen else f"pick {pick.policy}"
        for member in (member for expert in pick.experts for member in expert.members):
            roles.setdefault(member.sha, role)
    for pin in lock.experts:
        roles.setdefault(pin.source.sha, "expert")
    roles.setdefault(lock.base.source.sha, "base")
    for expert in (expert for pick in picks for expert in pick.experts):
        if expert.last_sha:  # the card reports the gain over the last step
            roles.setdefault(expert.last_sha, "last step")
    return roles


def tied_neighbours(lock: Lock) -> dict[str, str]:
    """Return the steps next to each chosen one that are tied with it, with their role."""
    roles = {}
    for task, expert in zip(lock.tasks, lock.pick().experts, strict=True):
        swaps = sorted(lock.swaps.get(task.id, ()), key=lambda swap: (swap.step, swap.sha))
        for index in [n for n, swap in enumerate(swaps) if swap.sha == expert.sha]:
            neighbours = [*swaps[max(index - 1, 0) : index], *swaps[index + 1 : index + 2]]
            roles.update({swap.sha: "tied with the choice" for swap in neighbours if swap.tied})
    return roles


def _series_reasons(refs: Sequence[RefInfo]) -> Iterator[tuple[RefInfo, list[str]]]:
    """Yield each ref with its reasons within its series of steps: last, best or early-stopped."""
    all_series = {(ref.repo, series_of(ref.name)) for ref in refs}
    for series in all_series:
        steps = [ref for ref in refs if (ref.repo, series_of(ref.name)) == series]
        last = max((ref.step for ref in steps if ref.step is not None), default=None)
        measured = [(-ref.own_accuracy, ref.step) for ref in steps if ref.own_accuracy is not None]
        best = min(measured, default=None, key=lambda pair: (pair[0], pair[1] or 0))
        for ref in steps:
            if ref.step is None:
                yield ref, ["no step"]
                continue
            own = ref.own_accuracy
            is_best = best is not None and own is not None and (-own, ref.step) == best
            reasons = {
                "early stop": ref.stopped_early,
                "best expert": is_best,
                "last": ref.step == last,
            }
            yield ref, [reason for reason, applies in reasons.items() if applies]


def _fit_budget(
    required: Sequence[RefInfo], optional: Sequence[RefInfo], gaps: Mapping[str, float], budget: int
) -> set[RefInfo]:
    """Return the optional refs to keep, by smallest gap and then by own accuracy.

    The first that does not fit ends the list: skipping it for a smaller one would make a larger
    budget, which fits it, drop that smaller one.
    """

    def rank(ref: RefInfo) -> tuple[float, float]:
        return gaps.get(ref.sha, math.inf), -(ref.own_accuracy or 0.0)

    kept = list(required)
    for ref in sorted(optional, key=rank):
        if stored_bytes([*kept, ref]) > budget:
            break
        kept.append(ref)
    return set(kept[len(required) :])


def _budget_reasons(ref: RefInfo, gaps: Mapping[str, float], fits: bool) -> Iterator[str]:
    if fits:
        yield "fits the budget"
    gap = gaps.get(ref.sha)
    yield "in no measured merge" if gap is None else f"{100 * gap:.1f} points behind the best"
