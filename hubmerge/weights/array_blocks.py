"""Iterate over large arrays in blocks.

Values computed from a block stay in the processor's cache. Whole tensors would each need fresh
memory from the system, which takes more of a merge's time than the arithmetic.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from hubmerge.weights.dtypes import Array

BLOCK_SIZE = 1 << 17  # entries
_local = threading.local()


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same block of each array, as flat views in order; all are contiguous and of one size."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK_SIZE):
        yield tuple(array[start : start + BLOCK_SIZE] for array in flat)


def scratch(key: str, size: int, dtype: np.dtype[Any]) -> Array:
    """Memory for intermediate values of a block: one array per key and thread, used again."""
    arrays: dict[tuple[str, np.dtype[Any]], Array] = _local.__dict__.setdefault("arrays", {})
    array = arrays.get((key, dtype))
    if array is None or array.size < size:
        array = arrays[key, dtype] = np.empty(max(size, BLOCK_SIZE), dtype)
    return array[:size]
