"""The gain of what several searches chose, each on the rows that it had not seen, and its interval.

The two halves are judged on different rows, but they are not independent: each chose on the rows
that judge the other. Where both chose the same merge by chance, it is lucky on both halves; where
they chose differently, neither is. So their errors have a positive covariance, which the variance
over rows does not show. For m equally good, independent merges it is E(m)^2 / (m - 1) of the
variance of a half, where E(m) is the expected maximum of m standard normal values: 0.32 for two,
0.36 for three, 0.26 for ten. It vanishes where both halves always choose the same, as then
the choice is no chance. The less the choices agree, the more of it is added to the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

from hubmerge.selection import noise
from hubmerge.selection.folds import pool_trials
from hubmerge.selection.noise import Interval
from hubmerge.trials import Trial

# Of the variance, where the choices of the searches have nothing in common. With the agreement of
# such merges, 1 / m, the covariance above is at most so much (but 0.64 for two), and in simulated
# worlds the interval covers as it should: see docs/selection.md.
_COVARIANCE = 0.5


@dataclass(frozen=True)
class FoldTrials:
    """What the search of each fold chose, by number of the fold, measured on all rows."""

    trials: tuple[Trial, ...]

    @property
    def pooled(self) -> Trial:
        """The trial whose rows of a fold are from the choice that had not seen them."""
        return pool_trials(self.trials)


def fold_gain(ours: FoldTrials, rivals: FoldTrials, seed: int) -> Interval:
    """Return the gain over the rivals on rows that did not choose, and its 95 % interval."""
    value, low, high = noise.interval(ours.pooled, rivals.pooled, seed)
    factor = math.sqrt(1 + _COVARIANCE * (1 - agreement(ours, rivals)))
    return value, value - factor * (value - low), value + factor * (high - value)


def agreement(ours: FoldTrials, rivals: FoldTrials) -> float:
    """Return how much the gains of two searches agree over the rows: their correlation, 0 to 1.

    It is the mean over all pairs of searches; 1 if all chose the same.
    """
    pairs = list(zip(ours.trials, rivals.trials, strict=True))
    values = [noise.gain_correlation(first, second) for first, second in combinations(pairs, 2)]
    return min(max(math.fsum(values) / len(values), 0.0), 1.0) if values else 1.0
