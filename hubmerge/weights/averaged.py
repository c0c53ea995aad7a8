"""The mean of several checkpoints of one expert, as if it had been saved.

Averaging steps stands in for a falling learning rate: LAWA (arXiv 2209.14981), WSM (2507.17634) and
PMA (2505.12082). Means by a metric of the steps: MWA (2504.18580).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.adapter_match import match_adapter
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.full_match import match_full
from hubmerge.weights.header import safe_name
from hubmerge.weights.match_options import MatchOptions
from hubmerge.weights.task_vector import TaskVector

_DTYPE_NAMES = {np.dtype(DTYPES[name]): name for name in ("F32", "F64")}


def average_checkpoints(
    base: Checkpoint,
    members: Sequence[Checkpoint],
    options: MatchOptions,
    shares: Sequence[float] | None = None,
) -> Checkpoint:
    """Return base + the mean of the members' changes, as a full checkpoint in float32.

    (In float64 for tensors that the base has in F64.) `shares`, positive numbers of which only the
    ratios matter, weight the members. Nothing is read before a tensor is. Raises CheckpointError,
    with all that is wrong with any member, if one does not fit the base.
    """
    problems = [problem for member in members for problem in _problems(base, member, options)]
    raise_together(CheckpointError, problems, "Choose other steps.")
    vectors = [TaskVector(base, member, options) for member in members]
    weighted = list(zip(vectors, shares or [1.0] * len(vectors), strict=True))
    changed = [
        name
        for name, tensor in base.index.items()
        if is_float(tensor.dtype) and not all(vector.keeps(name) for vector in vectors)
    ]
    return base.with_views({
        name: (
            dataclasses.replace(
                base.index[name], dtype=_DTYPE_NAMES[compute_dtype(base.index[name].dtype)]
            ),
            partial(_mean, base, weighted, name),
        )
        for name in changed
    })  # fmt: skip


def _mean(base: Checkpoint, vectors: Sequence[tuple[TaskVector, float]], name: str) -> Array:
    """Return base + mean; the sum is made in the order of the vectors, in float64."""
    values = base.read(name)
    total = np.zeros(values.shape, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the merge checks what is finite
        for vector, share in vectors:
            delta = vector.delta_from(values, name)
            total += delta if share == 1 else share * np.asarray(delta, np.float64)
        mean = total / math.fsum(share for _, share in vectors)
        return np.asarray(cast(values, np.dtype(np.float64)) + mean).astype(
            compute_dtype(base.index[name].dtype)
        )


def _problems(base: Checkpoint, member: Checkpoint, options: MatchOptions) -> list[str]:
    label = str(member.folder)
    match = match_adapter if member.kind == "lora" else match_full
    found = [problem for problem, _ in match(base, member, label, options).problems]
    if found:
        return found
    vector = TaskVector(base, member, options)
    return [
        f"{label} has other values than the base in tensor {safe_name(name)!r}, which cannot be "
        "averaged."
        for name, tensor in base.index.items()
        if not is_float(tensor.dtype) and not vector.matches_base(name)
    ]
