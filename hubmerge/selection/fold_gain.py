"""The interval of a gain that was measured on folds, each judged by what was chosen without it.

Two halves are judged on different rows, but they are not independent: each chose on the rows that
judge the other. Where both chose the same by chance, it is lucky on both halves; where they chose
differently, neither is. So their errors have a positive covariance, which the variance over rows
does not show. For m independent merges that are equally good, with E(m) the expected maximum of m
standard normal values, it is E(m)^2 / (m - 1) of the variance of a half: 0.32 for two, 0.36 for
three, 0.26 for ten, 0.10 for fifty. Neighbours in a search are alike, which lowers it, and where
one choice is clearly the best it is zero. It cannot be estimated from one selection: whether both
halves agree by chance or because they are right looks the same.
"""

from __future__ import annotations

from hubmerge.selection import noise
from hubmerge.selection.noise import Interval
from hubmerge.trials import Trial

# A tenth stands for a covariance of a fifth of the variance. docs/selection.md has the coverage in
# simulated worlds with and without it.
_WIDENING = 1.1


def fold_gain(pooled: Trial, rival: Trial, seed: int) -> Interval:
    """Return the gain of one pooled trial over another, and the ends of its 95 % interval."""
    value, low, high = noise.interval(pooled, rival, seed)
    return value, value - _WIDENING * (value - low), value + _WIDENING * (high - value)
