"""One array minus another: exactly zero where they are the same."""

from __future__ import annotations

import numpy as np

from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.dtypes import Array, cast


def difference(expert: Array, base: Array, dtype: np.dtype[np.floating]) -> Array:
    """expert - base in `dtype`; all zeros if both hold the same bytes, even infinities and NaN.

    The result overwrites the expert's values if they have that dtype.
    """
    if same_bytes(expert, base):  # also where both are infinite, which would give NaN
        return np.zeros(base.shape, dtype)
    return subtract(expert, base, dtype)


def subtract(expert: Array, base: Array, dtype: np.dtype[np.floating]) -> Array:
    """expert - base, computed in the wider of `dtype` and the inputs, then rounded to `dtype`.

    The result overwrites the expert's values if they have that dtype, as new memory takes time.
    A difference of two finite values that overflows becomes inf, which the caller checks for.
    """
    wide = np.result_type(dtype, *(a.dtype for a in (expert, base) if a.dtype == np.float64))
    delta = expert if expert.dtype == dtype else np.empty(base.shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for out_block, expert_block, base_block in blocks(delta, expert, base):
            np.subtract(
                cast(expert_block, wide), cast(base_block, wide), out=out_block, casting="same_kind"
            )
    return delta


def same_bytes(first: Array, second: Array) -> bool:
    """Whether two arrays of one shape hold the same bytes in the same dtype."""
    if first.dtype != second.dtype:
        return False
    byte_blocks = blocks(first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8))
    return all(
        np.array_equal(first_block, second_block) for first_block, second_block in byte_blocks
    )
