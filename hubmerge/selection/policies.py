"""How steps are chosen: what people do, what the paper does, and what goes beyond it.

Every policy is a function from a search to the best choice that it finds; each tunes the method's
parameters on validation, as appendix C of arXiv 2506.14126 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hubmerge.selection.pool import Candidate, plain_choice
from hubmerge.selection.search import Found, Search

_STRIDES = (2, 1)  # in the grid, from a start that is not far off
_SWEEPS = 3
_REACH = 3  # places to either side of a step
_FACTORS = (1.5, 1.2)  # by which weights are multiplied and divided
_KEPT = (0.5, 0.3, 0.2, 0.1)  # fractions of an expert's changes
_INTRUDERS = (0.9, 0.75)  # factors on its intruder dimensions; near 1, as they hold the base too


def last(search: Search) -> Found:
    """Every expert's last step: what people merge today."""
    return _tuned(search, tuple(len(its) - 1 for its in search.pool.candidates))


def best_expert(search: Search, own: Callable[[int, int], float]) -> Found:
    """The step of each expert with the best accuracy on its own task; the earliest of equals."""
    places = []
    for task, its in enumerate(search.pool.candidates):
        accuracies = [own(task, place) for place in range(len(its))]
        places.append(accuracies.index(max(accuracies)))
    return _tuned(search, tuple(places))


def early_stop(search: Search) -> Found | None:
    """The step at which early stopping ended each run; None where a run was not stopped."""
    places = [_stopped(its) for its in search.pool.candidates]
    known = [place for place in places if place is not None]
    return _tuned(search, tuple(known)) if len(known) == len(places) else None


def uniform(search: Search) -> Iterator[Found]:
    """Every common step, last first, each tuned from its neighbour's parameters: the paper's."""
    steps = {one.step for its in search.pool.candidates for one in its}
    before: Found | None = None
    for step in sorted(steps, reverse=True):
        places = search.pool.same_step(step)
        if places is None:
            continue
        if before is None:
            start = search.start(places)
        else:
            start = search.whole(plain_choice(places, dict(before.choice.params)))
        before = search.tune(start, _STRIDES)
        yield before


def coordinate(search: Search, start: Found) -> Found:
    """A step of its own for each task, from a good start: all at once, then one at a time."""
    best = start
    for sweep in range(_SWEEPS):
        before = best
        best = _shift(search, best)
        for task in range(len(search.pool.tasks)):
            best = _move(search, best, task, _REACH if sweep == 0 else 1)
        best = search.tune(best, _STRIDES if sweep == 0 else (1,))
        if best is before:
            break
    return best


def weights(search: Search, start: Found) -> Found:
    """A weight of its own for each task, at the steps of the start: the honest rival."""
    best = start
    for factor in _FACTORS:
        for task in range(len(search.pool.tasks)):
            best = _weigh(search, best, task, factor)
        best = search.tune(best, (1,))
    return best


def joint(search: Search, start: Found) -> Found:
    """Steps and weights together."""
    best = start
    for _ in range(_SWEEPS):
        before = best
        best = weights(search, best)
        for task in range(len(search.pool.tasks)):
            best = _move(search, best, task, reach=1)
        if best is before:
            break
    return best


def rescale(search: Search, start: Found) -> Found:
    """Stopping early after the fact: task vectors weighed, trimmed, or rid of intruder dimensions.

    For repositories that have only a final checkpoint.
    """
    best = weights(search, start)
    for task in range(len(search.pool.tasks)):
        kept = (best.choice.keeping(task, keep) for keep in _KEPT)
        best = search.best_of(kept, best)
        damped = (best.choice.damping(task, factor) for factor in _INTRUDERS)
        best = search.best_of(damped, best)
    return search.tune(best, (1,))


def _tuned(search: Search, places: tuple[int, ...]) -> Found:
    return search.tune(search.start(places), _STRIDES)


def _stopped(candidates: Sequence[Candidate]) -> int | None:
    return next((place for place, one in enumerate(candidates) if one.stopped), None)


def _move(search: Search, best: Found, task: int, reach: int) -> Found:
    """Other steps for one task, nearest first; further on where the last one was the best."""
    for sign in (-1, 1):
        here, tried = best.choice.places[task], 0
        while tried < reach:
            here, tried = here + sign, tried + 1
            if not 0 <= here < len(search.pool.candidates[task]):
                break
            found = search.better(best.choice.at(task, here), best)
            tried = 0 if found is not best else tried
            best = found
    return best


def _shift(search: Search, best: Found) -> Found:
    """Every task one step earlier or later, as long as that helps."""
    for sign in (-1, 1):
        while True:
            moved = search.pool.shifted(best.choice, sign)
            found = search.better(moved, best)
            if found is best:
                break
            best = found
    return best


def _weigh(search: Search, best: Found, task: int, factor: float) -> Found:
    for by in (factor, 1 / factor):
        while True:
            weight = round(best.choice.weights[task] * by, 4)
            found = search.better(best.choice.weighing(task, weight), best)
            if found is best:
                break
            best = found
    return best
