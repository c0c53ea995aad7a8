"""Where each rule stops a run, computed from its validation curve as in the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubmerge.training.stopping import patience_exhausted, plateau_factor
from hubmerge.training_curve import ValidationPoint
from recipes.studies.early_stopping.runs import EVERY, FACTOR, PATIENCE, WARMUP

THRESHOLDS = (4, 8, 16, 32, 64)
"""Thresholds of the plateau rule as 1/n of the peak rate; the paper does not state its own."""
BANDS = (0.5, 1.0, 2.0)
PATIENCES = (3, 5, 10, 20, 30)

StopCondition = Callable[[Sequence[float], int], bool]


@dataclass(frozen=True)
class Rule:
    """A stopping rule: the shape of its run, and whether accuracies over `count` rows end it."""

    shape: str
    condition: StopCondition

    def find_stop(self, curve: Sequence[ValidationPoint]) -> int:
        """The step at which the rule stops, or the last step."""
        watched = list[float]()
        for point in curve:
            if point.step >= WARMUP and point.step % EVERY == 0:
                watched.append(point.accuracy)
                if self.condition(watched, point.count):
                    return point.step
        return curve[-1].step


def _plateau(n: int) -> Rule:
    return Rule("plateau", lambda seen, count: plateau_factor(seen, PATIENCE, FACTOR) < 1 / n)


def _noise(band: float, patience: int) -> Rule:
    return Rule("constant", lambda seen, count: patience_exhausted(seen, count, patience, band))


RULES = {f"plateau 1/{n}": _plateau(n) for n in THRESHOLDS} | {
    f"noise {band:g} x {patience}": _noise(band, patience)
    for band in BANDS
    for patience in PATIENCES
}
