"""Large arrays a piece at a time.

What is computed from a piece stays in the processor's cache, where whole tensors would each take
fresh memory from the system: merging spends more time on that than on arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from hubmerge.weights.dtypes import Array

BLOCK = 1 << 16  # entries


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same piece of each array, as flat views in order; all are contiguous and of one size."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)
