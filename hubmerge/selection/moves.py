"""The neighbours of a choice that a search proposes: other steps, or other weights.

Parameters of the method are not moved here: a search combines every neighbour with every point of
the method's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations

from hubmerge.selection.choice import Choice
from hubmerge.selection.pool import Pool

Moves = Callable[[Pool, Choice], Iterator[Choice]]
Probes = Callable[[Pool], Iterator[Callable[[Choice], Choice]]]

_FACTORS = (1 / 1.5, 1 / 1.2, 1.2, 1.5)  # on the weight of one task
_STRIDES = (-2, -1, 1, 2)  # in the steps of one task


def step_moves(pool: Pool, centre: Choice) -> Iterator[Choice]:
    """Yield the choice itself, and it with the steps of all tasks, of one or of two moved."""
    yield centre
    yield from (pool.shift(centre, by) for by in (-1, 1))
    tasks = [task for task, weight in enumerate(centre.weights) if weight]
    for task in tasks:
        for by in _STRIDES:
            yield from _moved(pool, centre, {task: by})
    for first, second in combinations(tasks, 2):
        for by_first in (-1, 1):
            for by_second in (-1, 1):
                yield from _moved(pool, centre, {first: by_first, second: by_second})


def step_probes(pool: Pool) -> Iterator[Callable[[Choice], Choice]]:
    """Yield functions that move the steps of all tasks, then of each, one earlier or later."""
    for by in (-1, 1):
        yield partial(pool.shift, by=by)
    for task in range(len(pool.tasks)):
        for by in (-1, 1):
            yield partial(_clipped, pool, task, by)


def weight_probes(pool: Pool) -> Iterator[Callable[[Choice], Choice]]:
    """Yield functions that multiply or divide the weight of one task."""
    for task in range(len(pool.tasks)):
        for factor in (1.2, 1 / 1.2):
            yield partial(_weighed, task, factor)


def weight_moves(pool: Pool, centre: Choice) -> Iterator[Choice]:
    """Yield the choice itself, and it with another weight for one task."""
    yield centre
    for task, weight in enumerate(centre.weights):
        for factor in _FACTORS if weight else ():
            yield centre.with_weight(task, round(weight * factor, 4))


def all_moves(pool: Pool, centre: Choice) -> Iterator[Choice]:
    """Yield what `step_moves` and `weight_moves` do."""
    yield from step_moves(pool, centre)
    yield from weight_moves(pool, centre)


def common_moves(pool: Pool, centre: Choice) -> Iterator[Choice]:
    """Yield every choice of one step for all tasks, earliest first, whatever the centre is."""
    for indices in pool.common_steps():
        yield replace(centre, indices=indices)


def _clipped(pool: Pool, task: int, by: int, choice: Choice) -> Choice:
    last = len(pool.candidates[task]) - 1
    index = min(max(choice.indices[task] + by, 0), last)
    return choice.with_candidate(task, index) if choice.weights[task] else choice


def _weighed(task: int, factor: float, choice: Choice) -> Choice:
    return choice.with_weight(task, round(choice.weights[task] * factor, 4))


def _moved(pool: Pool, centre: Choice, by_task: dict[int, int]) -> Iterator[Choice]:
    """Yield the choice with these tasks moved, unless one has no such step."""
    choice = centre
    for task, by in by_task.items():
        index = centre.indices[task] + by
        if not 0 <= index < len(pool.candidates[task]):
            return
        choice = choice.with_candidate(task, index)
    yield choice
