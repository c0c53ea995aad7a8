"""Rows by how hard they are: ranks, bins of equal size, and what falls into each bin.

One order holds everywhere: by score, and by row where scores are equal (arXiv 2506.14126, fig. 3).
Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BINS = 10


def ranked(scores: ArrayLike) -> Ints:
    """Rows from the easiest to the hardest [N]."""
    return np.argsort(np.asarray(scores, np.float64), kind="stable")


def bins_of(scores: ArrayLike, count: int = BINS) -> Ints:
    """The bin of each row [N], 0 (easiest) to count - 1 (hardest); sizes differ by one at most."""
    order = ranked(scores)
    bins = np.empty(len(order), np.int64)
    bins[order] = np.arange(len(order)) * count // max(len(order), 1)
    return bins


def sums(values: ArrayLike, bins: Ints, count: int = BINS) -> Floats:
    """What the values [N] of each bin add up to [count]."""
    weights = np.asarray(values, np.float64)
    return np.bincount(bins, weights=weights, minlength=count).astype(np.float64)


def shares(values: ArrayLike, bins: Ints, count: int = BINS) -> Floats:
    """What each bin has of the sum of all values (none below 0) [count]; zeros for a sum of 0."""
    total = sums(values, bins, count)
    whole = total.sum()
    return total / whole if whole > 0 else np.zeros(count)


def means(values: ArrayLike, bins: Ints, count: int = BINS) -> Floats:
    """The mean of each bin [count]; 0 for a bin without rows."""
    return sums(values, bins, count) / np.maximum(np.bincount(bins, minlength=count), 1)


def hardest(scores: ArrayLike, share: float) -> Ints:
    """The hardest rows, as many as a share in [0, 1] of all is, the hardest of them last."""
    order = ranked(scores)
    return order[len(order) - round(share * len(order)) :]
