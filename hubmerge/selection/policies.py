"""The policies that choose steps: common practice, the paper's, and what goes beyond it.

A policy is a function from a search to the best choice that it finds. Each tunes the parameters of
the method on validation data, as in appendix C of arXiv 2506.14126.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hubmerge.selection.pool import Candidate, plain_choice
from hubmerge.selection.search import MeasuredChoice, Search

_STRIDES = (2, 1)  # in the grid, from a good starting point
_SWEEPS = 3
_REACH = 3  # steps to either side of the chosen one
_FACTORS = (1.5, 1.2)  # by which weights are multiplied and divided
_KEEP_FRACTIONS = (0.5, 0.3, 0.2, 0.1)  # of an expert's changes
_INTRUDERS = (0.9, 0.75)  # factors on intruder dimensions; near 1, as they also hold the base


def last(search: Search) -> MeasuredChoice:
    """Choose every expert's last step: common practice."""
    return _tune_from(search, tuple(len(steps) - 1 for steps in search.pool.candidates))


def best_expert(search: Search, own_accuracy: Callable[[int, int], float]) -> MeasuredChoice:
    """Choose each expert's best step on its own task, the earliest of equals.

    `own` returns the accuracy of a candidate on its own task, given the task's and its index.
    """
    indices = []
    for task, steps in enumerate(search.pool.candidates):
        accuracies = [own_accuracy(task, index) for index in range(len(steps))]
        indices.append(accuracies.index(max(accuracies)))
    return _tune_from(search, tuple(indices))


def early_stop(search: Search) -> MeasuredChoice | None:
    """Choose where early stopping ended each run; None if a run was not stopped early."""
    indices = [_early_stop_index(steps) for steps in search.pool.candidates]
    known = [index for index in indices if index is not None]
    return _tune_from(search, tuple(known)) if len(known) == len(indices) else None


def uniform(search: Search) -> Iterator[MeasuredChoice]:
    """Yield every common step, last first, each tuned from the previous one: the paper's policy."""
    steps = {candidate.step for candidates in search.pool.candidates for candidate in candidates}
    previous: MeasuredChoice | None = None
    for step in sorted(steps, reverse=True):
        indices = search.pool.common_step(step)
        if indices is None:
            continue
        if previous is None:
            start = search.measure_start(indices)
        else:
            start = search.measure_all_rows(plain_choice(indices, dict(previous.choice.params)))
        previous = search.tune(start, _STRIDES)
        yield previous


def coordinate(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose a separate step for each task: move all together, then one at a time."""
    best = start
    for sweep in range(_SWEEPS):
        previous = best
        best = _shift_all(search, best)
        for task in range(len(search.pool.tasks)):
            best = _move_step(search, best, task, _REACH if sweep == 0 else 1)
        best = search.tune(best, _STRIDES if sweep == 0 else (1,))
        if best is previous:
            break
    return best


def weights(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose a separate weight for each task at the steps of the start: a strong baseline."""
    best = start
    for factor in _FACTORS:
        for task in range(len(search.pool.tasks)):
            best = _weigh(search, best, task, factor)
        best = search.tune(best, (1,))
    return best


def joint(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose steps and weights together."""
    best = start
    for _ in range(_SWEEPS):
        previous = best
        best = weights(search, best)
        for task in range(len(search.pool.tasks)):
            best = _move_step(search, best, task, reach=1)
        if best is previous:
            break
    return best


def rescale(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Imitate early stopping: weight and trim task vectors, and damp intruder dimensions.

    This is for repositories that have only a final checkpoint.
    """
    best = weights(search, start)
    for task in range(len(search.pool.tasks)):
        kept = (best.choice.with_keep(task, keep) for keep in _KEEP_FRACTIONS)
        best = search.best_of(kept, best)
        damped = (best.choice.with_intruders(task, factor) for factor in _INTRUDERS)
        best = search.best_of(damped, best)
    return search.tune(best, (1,))


def _tune_from(search: Search, indices: tuple[int, ...]) -> MeasuredChoice:
    return search.tune(search.measure_start(indices), _STRIDES)


def _early_stop_index(candidates: Sequence[Candidate]) -> int | None:
    return next(
        (index for index, candidate in enumerate(candidates) if candidate.stopped_early), None
    )


def _move_step(search: Search, best: MeasuredChoice, task: int, reach: int) -> MeasuredChoice:
    """Try other steps for one task, nearest first; `reach` starts again at every improvement."""
    for sign in (-1, 1):
        index, tried = best.choice.indices[task], 0
        while tried < reach:
            index, tried = index + sign, tried + 1
            if not 0 <= index < len(search.pool.candidates[task]):
                break
            better = search.better_of(best.choice.with_candidate(task, index), best)
            tried = 0 if better is not best else tried
            best = better
    return best


def _shift_all(search: Search, best: MeasuredChoice) -> MeasuredChoice:
    """Move every task one step earlier or later, as long as accuracy improves."""
    for sign in (-1, 1):
        while True:
            shifted = search.pool.shift(best.choice, sign)
            better = search.better_of(shifted, best)
            if better is best:
                break
            best = better
    return best


def _weigh(search: Search, best: MeasuredChoice, task: int, factor: float) -> MeasuredChoice:
    for multiplier in (factor, 1 / factor):
        while True:
            weight = round(best.choice.weights[task] * multiplier, 4)
            better = search.better_of(best.choice.with_weight(task, weight), best)
            if better is best:
                break
            best = better
    return best
