"""What a mixture may start from: a step of each expert, by the rules that people go by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.selection.pool import Candidate, Pool

Places = tuple[int, ...]
EARLY_STOP, LAST, BEST_EXPERT = "early-stop", "last", "best-expert"
_NULL_SHARE = 8  # the paper's mixtures start best from step 256 of 2048 (arXiv 2506.14126)


@dataclass(frozen=True)
class Arms:
    """The starts by name, earliest first: for each task the place of its candidate.

    `null` is the one that the paper found best: undertrained. `last` is that of the last steps,
    which early stopping may have chosen, so that it is the null itself. `names` maps every name of
    a start to the one that it goes by.
    """

    places: Mapping[str, Places]
    null: str
    last: str
    names: Mapping[str, str]

    @property
    def challengers(self) -> tuple[str, ...]:
        """Those that are raced, earliest first."""
        return tuple(name for name in self.places if name not in (self.null, self.last))


def arms_of(pool: Pool) -> Arms:
    """Every start that a rule leads to, each once.

    Without early-stopped runs the null is the common step nearest to an eighth of the last, in
    octaves.
    """
    named: dict[Places, str] = {}
    names = {name: named.setdefault(places, name) for name, places in _named(pool)}
    octaves = {places: _octaves(pool, places) for places in named}
    ordered = sorted(named, key=lambda places: (octaves[places], places))
    last = _last(pool)
    null = _stopped(pool) or _undertrained(pool, octaves[last])
    return Arms({named[places]: places for places in ordered}, named[null], named[last], names)


def _named(pool: Pool) -> Iterator[tuple[str, Places]]:
    """Of several names for one start the first is the one that it goes by."""
    if stopped := _stopped(pool):
        yield EARLY_STOP, stopped
    yield LAST, _last(pool)
    for step, places in _common(pool).items():
        yield f"step{step}", places
    if best := _best_expert(pool):
        yield BEST_EXPERT, best


def _common(pool: Pool) -> dict[int, Places]:
    """Every step that some expert has, of each expert or its nearest earlier one."""
    runs = [_unstopped(its) for its in pool.candidates]
    found = {}
    for step in sorted({one.step for run in runs for _, one in run}):
        up_to = [[place for place, one in run if one.step <= step] for run in runs]
        if all(up_to):
            found[step] = tuple(its[-1] for its in up_to)
    return found


def _unstopped(candidates: Sequence[Candidate]) -> list[tuple[int, Candidate]]:
    """Places and steps of runs that went on: where others stopped is no step to hold in common."""
    every = list(enumerate(candidates))
    return [(place, one) for place, one in every if not one.stopped] or every


def _last(pool: Pool) -> Places:
    return tuple(len(its) - 1 for its in pool.candidates)


def _stopped(pool: Pool) -> Places | None:
    """Where early stopping ended each run; None where a run was not stopped."""
    stopped = [[n for n, one in enumerate(its) if one.stopped] for its in pool.candidates]
    return tuple(its[0] for its in stopped) if all(stopped) else None


def _best_expert(pool: Pool) -> Places | None:
    """The step of each expert that is best on its own task; None where some are not recorded."""
    own = [[one.own for one in its] for its in pool.candidates]
    known = [[value for value in its if value is not None] for its in own]
    if list(map(len, known)) != list(map(len, own)):
        return None
    return tuple(its.index(max(its)) for its in known)


def _undertrained(pool: Pool, last: float) -> Places:
    wanted = last - math.log2(_NULL_SHARE)
    common = _common(pool).values()
    return min(common, key=lambda places: abs(_octaves(pool, places) - wanted))


def _octaves(pool: Pool, places: Places) -> float:
    """The mean of the chosen steps, in octaves."""
    steps = [its[place].step for its, place in zip(pool.candidates, places, strict=True)]
    return math.fsum(math.log2(max(step, 1)) for step in steps) / len(steps)
