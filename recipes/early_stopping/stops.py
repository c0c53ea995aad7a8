"""Where each rule stops a run, read off its validation curve as the training loop reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubmerge.manifest import Point
from hubmerge.training.stopping import outlasted, plateau
from recipes.early_stopping.runs import EVERY, FACTOR, PATIENCE, WARMUP

THRESHOLDS = (4, 8, 16, 32, 64)
"""The paper's unstated threshold as 1/n of the peak rate."""
BANDS = (0.5, 1.0, 2.0)
PATIENCES = (3, 5, 10, 20, 30)

IsOver = Callable[[Sequence[float], int], bool]


@dataclass(frozen=True)
class Rule:
    """A stopping rule: on which run it is read, and whether accuracies over `count` end it."""

    shape: str
    is_over: IsOver

    def stop(self, curve: Sequence[Point]) -> int:
        """The step it stops at, the last one if it never does."""
        watched = list[float]()
        for point in curve:
            if point.step >= WARMUP and point.step % EVERY == 0:
                watched.append(point.accuracy)
                if self.is_over(watched, point.count):
                    return point.step
        return curve[-1].step


def _plateau(n: int) -> Rule:
    return Rule("plateau", lambda seen, count: plateau(seen, PATIENCE, FACTOR) < 1 / n)


def _noise(band: float, patience: int) -> Rule:
    return Rule("constant", lambda seen, count: outlasted(seen, count, patience, band))


RULES = {f"plateau 1/{n}": _plateau(n) for n in THRESHOLDS} | {
    f"noise {band:g} x {patience}": _noise(band, patience)
    for band in BANDS
    for patience in PATIENCES
}
