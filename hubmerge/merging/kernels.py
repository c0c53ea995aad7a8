"""The inner loops of merges, compiled where hubmerge was installed with a C compiler.

numpy needs an operation for each step of a formula and for each expert, and threads wait for the
interpreter's lock between them. A function of kernels.c computes a whole part without the lock.
Results are the bytes of numpy, which computes what does not `fit`: other dtypes than float32, and
everything where nothing was compiled. HUBMERGE_KERNELS=0 turns kernels off.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubmerge.weights.array_blocks import BLOCK_SIZE, scratch
from hubmerge.weights.dtypes import BFLOAT16, Array

LIBRARY = Path(__file__).with_name("libkernels.so")
SOURCE = Path(__file__).with_name("kernels.c")
SWITCH = "HUBMERGE_KERNELS"

_BITS, _SINGLE = np.dtype(np.uint32), np.dtype(np.float32)
_LOW_BITS = (1 << 64) - 1


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None if there is none, or one of another source."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        is_current = ctypes.c_uint64.in_dll(found, "source_digest").value == source_digest()
    except (OSError, ValueError):
        return None
    for name in ("add_to_base", "add_to_base_bfloat16", "random_mask"):
        getattr(found, name).restype = ctypes.c_int64
    return found if is_current else None


def source_digest() -> int:
    """What a library must hold to be that of kernels.c: 64 bits of the SHA-256 of the file."""
    return int.from_bytes(hashlib.sha256(SOURCE.read_bytes()).digest()[:8], "big")


def fit(*arrays: Array) -> bool:
    """Whether kernels compute these arrays: float32, each without gaps, and there is a library."""
    return library() is not None and all(
        array.dtype == _SINGLE and array.flags.c_contiguous and array.flags.aligned
        for array in arrays
    )


def subtract_base(values: Sequence[Array], base: Array) -> None:
    """Subtract the base from the weights of each expert, in place."""
    _call("subtract_base", tuple(values), base, len(values), base.size)


def subtract_base_bfloat16(weights: Sequence[Array], base: Array, out: Array) -> None:
    """Set `out` [experts x entries] to weights in bfloat16 minus the base in float32."""
    _call("subtract_base_bfloat16", tuple(weights), base, len(weights), base.size, out)


def weighted_sum(
    values: Sequence[Array], weights: Sequence[float], factor: float, divides: bool = False
) -> Array:
    """sum(w_i v_i), times or divided by a factor."""
    total = np.empty_like(values[0])
    _call(
        "weighted_sum", tuple(values), np.array(weights, _SINGLE), len(values), total.size,
        float(factor), divides, total,
    )  # fmt: skip
    return total


def ties(
    values: Sequence[Array],
    thresholds: Sequence[np.float32],
    weights: Sequence[float],
    elects_by_weight: bool,
    is_positive: bool,
    scale: float,
) -> tuple[Array, int, int, bool]:
    """Changes merged by TIES; see `ties.ties`. Zero sums are positive if `is_positive`.

    With them the numbers of positive and of negative sums, and whether kept changes cancel.
    """
    merged, counts = np.empty_like(values[0]), np.zeros(3, np.int64)
    is_weighted = any(weight != 1 for weight in weights)
    elects = weights if elects_by_weight else [1.0] * len(weights)
    _call(
        "ties", tuple(values), np.array(thresholds, _SINGLE), np.array(elects, _SINGLE),
        np.array(weights, np.float64), is_weighted, len(values), merged.size, is_positive,
        float(scale), merged, counts,
    )  # fmt: skip
    positives, negatives, cancelled = counts.tolist()
    return merged, positives, negatives, cancelled > 0


def bracket(
    values: Sequence[Array], lows: Sequence[int], highs: Sequence[int]
) -> list[tuple[int, NDArray[np.uint32]]]:
    """By expert, how many magnitudes have bits above a bracket, and the bits within it."""
    size, experts = values[0].size, len(values)
    inside = scratch("inside", size * experts, _BITS)
    insides, aboves = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    _call(
        "bracket", tuple(values), np.array(lows, _BITS), np.array(highs, _BITS), experts, size,
        inside, insides, aboves,
    )  # fmt: skip
    rows = zip(inside.reshape(experts, size), insides.tolist(), aboves.tolist(), strict=True)
    return [(above, row[:count].copy()) for row, count, above in rows]


def dropped_sum(
    values: Sequence[Array],
    masks: NDArray[np.bool_],
    densities: Sequence[float],
    weights: Sequence[float],
    scale: float,
) -> Array:
    """scale * sum(w_i v_i mask_i / density_i), with masks [experts x entries].

    A density of 0 leaves out the division.
    """
    total = np.empty_like(values[0])
    _call(
        "dropped_sum", tuple(values), masks, np.array(densities, _SINGLE),
        np.array(weights, _SINGLE), len(values), total.size, float(scale), total,
    )  # fmt: skip
    return total


def can_add(change: Array, base: Array, out: Array) -> bool:
    """Whether `add_to_base` computes these: `out` may have bfloat16, too."""
    return fit(change, base) and (out.dtype == BFLOAT16 or fit(out))


def add_to_base(change: Array, scale: float, base: Array, out: Array) -> bool:
    """Set `out` to scale * change + base, rounded; returns whether all of it is finite."""
    name = "add_to_base_bfloat16" if out.dtype == BFLOAT16 else "add_to_base"
    return bool(_call(name, change, float(scale), base, change.size, out))


def random_mask(
    state: int, increment: int, start: int, size: int, upper: int
) -> tuple[NDArray[np.bool_], list[int]]:
    """Whether 16 bits of PCG64DXSM are below `upper`, and the places where they equal it."""
    mask, equal = np.empty(size, np.bool_), scratch("equal", BLOCK_SIZE, np.dtype(np.int64))
    words = (state >> 64, state & _LOW_BITS, increment >> 64, increment & _LOW_BITS)
    seeds, places = np.array(words, np.uint64), list[int]()
    for first in range(0, size, BLOCK_SIZE):
        block = mask[first : first + BLOCK_SIZE]
        found = _call("random_mask", seeds, start + first, block.size, upper, block, equal)
        places += (equal[:found] + first).tolist()
    return mask, places


def _call(name: str, *args: Array | tuple[Array, ...] | float) -> int:
    """Call a function of kernels.c; `args` keep their arrays in memory meanwhile."""
    found = library()
    assert found is not None, "callers ask `fit` first"
    result: int = getattr(found, name)(*map(_argument, args))
    return result


def _argument(value: Array | tuple[Array, ...] | float) -> object:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, tuple):
        return (ctypes.c_void_p * len(value))(*(array.ctypes.data for array in value))
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
