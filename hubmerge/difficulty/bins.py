"""Rows ranked by difficulty, bins of equal size, and sums and means of each bin.

The order is the same everywhere: by score, then by row number (arXiv 2506.14126, fig. 3).
Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BINS = 10


def rank_rows(scores: ArrayLike) -> Ints:
    """Rows from the easiest to the hardest [N]."""
    return np.argsort(np.asarray(scores, np.float64), kind="stable")


def assign_bins(scores: ArrayLike, count: int = BINS) -> Ints:
    """The bin of each row [N], 0 (easiest) to count - 1 (hardest); sizes differ by one at most."""
    order = rank_rows(scores)
    bins = np.empty(len(order), np.int64)
    bins[order] = np.arange(len(order)) * count // max(len(order), 1)
    return bins


def bin_sums(values: ArrayLike, bins: Ints, count: int = BINS) -> Floats:
    """The sum of the values [N] in each bin [count]."""
    weights = np.asarray(values, np.float64)
    return np.bincount(bins, weights=weights, minlength=count).astype(np.float64)


def bin_shares(values: ArrayLike, bins: Ints, count: int = BINS) -> Floats:
    """Each bin's share of the sum of all values (none below 0) [count]; zeros for a sum of 0."""
    sums = bin_sums(values, bins, count)
    total = sums.sum()
    return sums / total if total > 0 else np.zeros(count)


def bin_means(values: ArrayLike, bins: Ints, count: int = BINS) -> Floats:
    """The mean of each bin [count]; 0 for a bin without rows."""
    return bin_sums(values, bins, count) / np.maximum(np.bincount(bins, minlength=count), 1)


def hardest_rows(scores: ArrayLike, share: float) -> Ints:
    """The hardest rows, a share in [0, 1] of all rows, the hardest of them last."""
    order = rank_rows(scores)
    return order[len(order) - round(share * len(order)) :]
