"""Merge one tensor as a whole: every method can, and errors name what is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.softening import Softening
from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.header import TensorInfo, safe_name
from hubmerge.weights.task_vector import TaskVector


def merge_tensor(
    plan: MergePlan, name: str, target: TensorInfo, softenings: Sequence[Softening], survey: Any
) -> Array:
    """The values of one tensor of the result, in the dtype that is written."""
    base, dtype = plan.base.read(name), DTYPES[target.dtype]
    if not is_float(target.dtype):
        return base
    deltas = tensor_deltas(plan, name, base, softenings)
    if not plan.method.is_changed(deltas, plan.params, survey):
        return _require_finite(
            plan, cast(base, dtype), name, "The base"
        )  # bit for bit if the dtypes are equal
    with np.errstate(over="ignore", invalid="ignore"):
        change = plan.method.combine(deltas, deltas.of_tensor(plan.params), survey)
        total = np.asarray(cast(base, compute_dtype(plan.base.index[name].dtype)) + change)
    return _require_finite(plan, cast(total, dtype), name, "The result")


def tensor_deltas(
    plan: MergePlan, name: str, base: Array, softenings: Sequence[Softening]
) -> Deltas:
    """The changes of all experts to a tensor; raises as `tensor_delta` does."""
    experts = list(zip(softenings, plan.experts, plan.vectors, strict=True))
    values = [
        softening.soften(name, tensor_delta(plan, expert, vector, name, base))
        for softening, expert, vector in experts
    ]
    deltas = make_deltas(plan, name, values, base)
    if plan.method.parts(plan.params) != "tensors":
        return deltas
    factors = (vector.low_rank(name) if soft.keeps(name) else None for soft, _, vector in experts)
    return replace(deltas, factors=tuple(factors))


def make_deltas(
    plan: MergePlan, name: str, values: list[Array], base: Array, start: int = 0
) -> Deltas:
    """Changes to a tensor, or to a part of one, with the weights and parameters for it."""
    shas = tuple(expert.sha for expert in plan.experts)
    if plan.settings.is_uniform:
        weights = tuple(expert.weight for expert in plan.experts)
        return Deltas(name, values, weights, shas, start, base)
    own_weights, params, expert_params = plan.settings_of(name)
    return Deltas(name, values, own_weights, shas, start, base, params, expert_params)


def tensor_delta(
    plan: MergePlan, expert: Expert, vector: TaskVector, name: str, base: Array
) -> Array:
    """The change of one expert to a tensor; CheckpointError for values that are not finite."""
    delta = vector.delta_from(base, name)
    if not plan.allow_nonfinite and not _all_finite(delta):
        _require_finite(plan, base, name, "The base")
        if expert.checkpoint.kind == "full":
            _require_finite(plan, vector.read(name), name, f"Expert {expert.name}")
        _require_finite(plan, delta, name, f"The difference of expert {expert.name} and the base")
    return delta


def _require_finite(plan: MergePlan, values: Array, name: str, label: str) -> Array:
    """Return the values if all are finite or the plan allows others; else raise CheckpointError."""
    if plan.allow_nonfinite or _all_finite(values):
        return values
    count = np.count_nonzero(~np.isfinite(values))
    raise CheckpointError(
        f"{label} has {count:,} values that are not finite in tensor {safe_name(name)!r}.",
        "A smaller scale, a wider dtype or another step of the expert may help.",
    )


def _all_finite(values: Array) -> bool:
    return all(np.isfinite(block).all() for (block,) in blocks(values))
