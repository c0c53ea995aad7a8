"""The exact k-th smallest magnitude of a model that does not fit in memory.

Non-negative floats have the same order as their bits read as integers. So a first pass counts
magnitudes by their high 16 bits, which gives the bin of the k-th, and a second pass counts the low
16 bits within that bin, which gives the k-th itself. Memory is two tables of 65,536 counts per
expert, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.dtypes import Array, cast

BINS = 1 << 16  # values of the high or the low 16 bits


def kth_magnitudes(
    passes: Callable[[], Iterable[Sequence[Array]]], rank_of: Callable[[int], int]
) -> tuple[np.float32, ...]:
    """The k-th smallest magnitude of every column of a stream, exactly, in two passes.

    `passes()` iterates over the stream: per tensor one array per column (expert), the same in each
    pass. `rank_of(count)` returns k, counted from 1, for a column of `count` entries; for 0 the
    result is 0.0. Magnitudes are compared as float32.
    """
    coarse = _histograms(passes(), lambda _, bits: bits >> 16)
    coarse_bins = [locate(counts, rank_of(int(counts.sum()))) for counts in coarse]
    highs = [high for high, _ in coarse_bins]
    fine = _histograms(passes(), lambda column, bits: bits[bits >> 16 == highs[column]] & 0xFFFF)
    lows = [locate(counts, rest)[0] for counts, (_, rest) in zip(fine, coarse_bins, strict=True)]
    bits = [(high << 16) | low for high, low in zip(highs, lows, strict=True)]
    return tuple(np.array(bits, np.uint32).view(np.float32))


def magnitudes(values: Array) -> NDArray[np.float32]:
    """The magnitudes of values as float32, in which they are ranked."""
    return cast(np.abs(values), np.dtype(np.float32))


def _histograms(
    stream: Iterable[Sequence[Array]],
    key: Callable[[int, NDArray[np.uint32]], NDArray[Any]],
) -> list[NDArray[np.int64]]:
    """Per column, how many entries have each of the 65,536 keys."""
    counts: list[NDArray[np.int64]] = []
    for arrays in stream:
        counts = counts or [np.zeros(BINS, np.int64) for _ in arrays]
        for column, array in enumerate(arrays):
            for (values,) in blocks(array):
                bits = magnitudes(values).view(np.uint32)
                counts[column] += np.bincount(key(column, bits), minlength=BINS)
    return counts


def locate(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that holds the entry of a rank, and its rank within the bin, counted from 1."""
    if rank <= 0:
        return 0, 0
    below = np.cumsum(counts)
    bin_index = int(np.searchsorted(below, rank))
    return bin_index, rank - int(below[bin_index] - counts[bin_index])
