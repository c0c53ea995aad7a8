"""Iterate over large arrays in blocks.

Values computed from a block stay in the processor's cache. Whole tensors would each need fresh
memory from the system, which takes more of a merge's time than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from hubmerge.weights.dtypes import Array

BLOCK_SIZE = 1 << 16  # entries


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same block of each array, as flat views in order; all are contiguous and of one size."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK_SIZE):
        yield tuple(array[start : start + BLOCK_SIZE] for array in flat)
