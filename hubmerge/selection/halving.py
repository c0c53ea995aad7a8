"""Successive halving: many starts trained for a short while, the better half for twice as long.

Source: Jamieson and Talwalkar, arXiv 1502.07943. Two things differ. Each run goes through its whole
learning rate schedule, warm-up to end, and starts again from scratch in the next round: accuracy
before the learning rate has decayed predicts little. And some starts are always trained fully.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.selection.search import OutOfBudget

_MAX_ROUNDS = 4  # starts at an eighth of the training; less is unfair to the earliest starts

Measure = Callable[[str, int], float]


@dataclass(frozen=True)
class HalvingRound:
    """The accuracies after `horizon` training steps, and the names of the starts that go on.

    `kept` is empty if the budget ended the round.
    """

    horizon: int
    accuracies: Mapping[str, float]
    kept: tuple[str, ...]


def horizons(train_steps: int, challengers: int) -> tuple[int, ...]:
    """Return the training steps of each round, doubling up to `full`.

    There are at most four rounds, and about two challengers are left for the last one.
    """
    rounds = min(_MAX_ROUNDS, max(1, challengers.bit_length()))
    steps = (round(train_steps / 2**halved) for halved in reversed(range(rounds)))
    return tuple(sorted({max(step, min(train_steps, 1)) for step in steps}))


def race(
    challengers: Sequence[str], protected: Sequence[str], horizons: Sequence[int], measure: Measure
) -> Iterator[HalvingRound]:
    """Measure round by round; the better half of the challengers goes on, rounded up.

    The `protected` starts are measured first, at the full horizon, and always kept. Among equals
    the first one goes on, so the earliest start should come first. When `measure` raises
    OutOfBudget, the error is passed on for a protected start, and otherwise ends the race.
    """
    yield HalvingRound(
        horizons[-1], {name: measure(name, horizons[-1]) for name in protected}, tuple(protected)
    )
    running = tuple(challengers)
    for horizon in horizons if running else ():
        accuracies: dict[str, float] = {}
        try:
            for name in running:
                accuracies[name] = measure(name, horizon)
        except OutOfBudget:
            yield HalvingRound(horizon, accuracies, ())
            return
        running = running if horizon == horizons[-1] else _better_half(running, accuracies)
        yield HalvingRound(horizon, accuracies, running)


def race_cost(challengers: int, protected: int, horizons: Sequence[int]) -> int:
    """Return the training steps that a whole race takes."""
    total = protected * horizons[-1]
    for horizon in horizons:
        total += challengers * horizon
        challengers = -(-challengers // 2)
    return total


def _better_half(names: Sequence[str], accuracies: Mapping[str, float]) -> tuple[str, ...]:
    """Return the better half in the given order."""
    ranked = sorted(names, key=lambda name: -accuracies[name])  # stable: among equals the first
    better = ranked[: -(-len(names) // 2)]
    return tuple(name for name in names if name in better)
