"""One array minus another, exactly where they are the same."""

from __future__ import annotations

import numpy as np

from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.dtypes import Array, cast


def difference(expert: Array, base: Array, dtype: np.dtype[np.floating]) -> Array:
    """expert - base in `dtype`; zeros where both hold the same bytes, as of infinities and NaN.

    It takes the place of the expert's values if they have that dtype.
    """
    if same_bytes(expert, base):  # also where both are infinite, which would give NaN
        return np.zeros(base.shape, dtype)
    return subtract(expert, base, dtype)


def subtract(expert: Array, base: Array, dtype: np.dtype[np.floating]) -> Array:
    """expert - base, computed in the wider of `dtype` and the inputs, then rounded to `dtype`.

    It takes the place of the expert's values if they have that dtype: fresh memory costs more time.
    A difference of two finite values that overflows becomes inf, which the caller looks for.
    """
    wide = np.result_type(dtype, *(a.dtype for a in (expert, base) if a.dtype == np.float64))
    delta = expert if expert.dtype == dtype else np.empty(base.shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for place, theirs, ours in blocks(delta, expert, base):
            np.subtract(cast(theirs, wide), cast(ours, wide), out=place, casting="same_kind")
    return delta


def same_bytes(one: Array, other: Array) -> bool:
    """Whether two arrays of one shape hold the same bytes in the same dtype."""
    if one.dtype != other.dtype:
        return False
    raw = blocks(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))
    return all(np.array_equal(ours, theirs) for ours, theirs in raw)
