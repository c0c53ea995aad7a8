"""Whether a full expert comes from a base, seen from a few blocks of their weights.

Fine-tuning moves weights little: their cosine with the base's is near 1. Two models that were
trained from different starts have a cosine near 0, even if their shapes are the same.
"""

from __future__ import annotations

import math

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import Array, is_float
from hubmerge.weights.full_match import match_full

# Below this cosine an expert is a stranger to its base.
STRANGER = 0.5
_TENSORS, _VALUES, _ENOUGH = 8, 1 << 14, 1000


def cosine(base: Checkpoint, expert: Checkpoint) -> float | None:
    """The cosine of the first values of up to 8 matrices; None if there are too few values.

    At most 16384 values of each are read, spread over all the matrices that fit. Vectors are left
    out, as those of norms are near 1 in every model.
    """
    names = match_full(base, expert, "").names
    matrices = [
        (name, own)
        for name, own in names.items()
        if len(base.index[name].shape) >= 2
        and is_float(base.index[name].dtype)
        and expert.index[own].fits(base.index[name])
    ]
    chosen = matrices[:: max(1, len(matrices) // _TENSORS)][:_TENSORS]
    pairs = [(_values(base, name), _values(expert, own)) for name, own in chosen]
    if sum(map(len, (ours for ours, _ in pairs))) < _ENOUGH:
        return None
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    norm = math.sqrt(_dot(ours, ours)) * math.sqrt(_dot(theirs, theirs))
    value = _dot(ours, theirs) / norm if norm else 0.0
    return value if math.isfinite(value) else None


def _dot(left: Array, right: Array) -> float:
    """The dot product without BLAS: to wake its threads takes longer than the sum."""
    return float(np.einsum("i,i", left, right))


def _values(checkpoint: Checkpoint, name: str) -> Array:
    try:
        return checkpoint.read_first(name, _VALUES).astype(np.float64)
    except CheckpointError:
        return np.zeros(0)  # reported when all of it is read
