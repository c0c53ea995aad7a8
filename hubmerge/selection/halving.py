"""Successive halving: many starts trained for a short while, the better half for twice as long.

Source: Jamieson and Talwalkar, arXiv 1502.07943. Two things differ. A run here goes through its
whole schedule, warm-up to end, and is made anew for the next horizon: a rate that has not come down
yet tells little of what it will have led to. And some starts are measured whatever the race says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.selection.search import OutOfBudget

_MOST_RUNGS = 4  # an eighth of the training; less punishes the earliest starts too much

Ask = Callable[[str, int], float]


@dataclass(frozen=True)
class Rung:
    """What starts reached after `horizon` training steps, and which of them go on.

    None goes on where the budget ended the rung.
    """

    horizon: int
    accuracies: Mapping[str, float]
    kept: tuple[str, ...]


def horizons(full: int, challengers: int) -> tuple[int, ...]:
    """The training steps of each rung, doubling up to all of them.

    There are as many rungs as leave two or so challengers for the last, and no more than four.
    """
    rungs = min(_MOST_RUNGS, max(1, challengers.bit_length()))
    steps = (round(full / 2**halved) for halved in reversed(range(rungs)))
    return tuple(sorted({max(step, min(full, 1)) for step in steps}))


def race(
    challengers: Sequence[str], sure: Sequence[str], horizons: Sequence[int], ask: Ask
) -> Iterator[Rung]:
    """Ask for accuracies rung by rung; the better half of the challengers goes on, rounded up.

    The `sure` ones come first, at the full horizon, and nothing drops them. Of equals the one that
    comes first goes on: name the earliest first. A budget that ends raises OutOfBudget in `ask`:
    for the sure ones it is passed on, later it ends the race.
    """
    yield Rung(horizons[-1], {name: ask(name, horizons[-1]) for name in sure}, tuple(sure))
    running = tuple(challengers)
    for horizon in horizons if running else ():
        told: dict[str, float] = {}
        try:
            for name in running:
                told[name] = ask(name, horizon)
        except OutOfBudget:
            yield Rung(horizon, told, ())
            return
        running = running if horizon == horizons[-1] else _better_half(running, told)
        yield Rung(horizon, told, running)


def cost(challengers: int, sure: int, horizons: Sequence[int]) -> int:
    """The training steps that a whole race takes."""
    total = sure * horizons[-1]
    for horizon in horizons:
        total += challengers * horizon
        challengers = -(-challengers // 2)
    return total


def _better_half(names: Sequence[str], accuracies: Mapping[str, float]) -> tuple[str, ...]:
    """In the order they came in."""
    ranked = sorted(names, key=lambda name: -accuracies[name])  # stable: of equals the first
    better = ranked[: -(-len(names) // 2)]
    return tuple(name for name in names if name in better)
