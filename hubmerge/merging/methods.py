"""The merge methods: each is its paper's formula, from the experts' changes to one merged change.

Every function takes the `Deltas` of one tensor [experts x any shape], the method's parameters, and
the result of its survey of the whole model (None if it has no survey). It returns the merged task
vector of that tensor, in the dtype of the deltas, to be added to the base. Nothing here depends on
files, on the Hub, or on the order of tensors and experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hubmerge.merging import kernels
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.params import (
    DareParams,
    NoParams,
    PassthroughParams,
    TaskArithmeticParams,
)
from hubmerge.merging.random_masks import random_mask
from hubmerge.weights.array_blocks import scratch
from hubmerge.weights.dtypes import Array


def average(deltas: Deltas, params: NoParams, survey: None = None) -> Array:
    """The weighted mean of the experts: sum(w_i d_i) / sum(w_i).

    As a change to the base it equals the mean of the models, and a tensor that no expert changed
    keeps every bit. Source: model soups, https://arxiv.org/abs/2203.05482
    """
    if kernels.fit(*deltas.values):
        return kernels.weighted_sum(
            deltas.values, deltas.weights, sum(deltas.weights), divides=True
        )
    return weighted_sum(deltas.values, deltas.weights) / sum(deltas.weights)


def task_arithmetic(deltas: Deltas, params: TaskArithmeticParams, survey: None = None) -> Array:
    """scale * sum(w_i d_i). Source: https://arxiv.org/abs/2212.04089, equation of section 4."""
    if kernels.fit(*deltas.values):
        return kernels.weighted_sum(deltas.values, deltas.weights, params.scale)
    return params.scale * weighted_sum(deltas.values, deltas.weights)


def dare(deltas: Deltas, params: DareParams, survey: None = None) -> Array:
    """Drop each change with probability 1 - density, rescale the rest, then task arithmetic.

    Source: https://arxiv.org/abs/2311.03099, equations of section 3.2.
    """
    if params.rescale == "l1" or not kernels.fit(*deltas.values):
        return params.scale * weighted_sum(drop_changes(deltas, params), deltas.weights)
    change = np.empty_like(deltas.values[0])
    for part in deltas.parts():
        size = part.values[0].size
        at = part.start - deltas.start
        change.reshape(-1)[at : at + size] = _dropped_sum(part, params)
    return change


def _dropped_sum(part: Deltas, params: DareParams) -> Array:
    """DARE of a part, by kernels."""
    own, size = part.of_experts(params), part.values[0].size
    masks = scratch("masks", size * len(own), np.dtype(np.bool_)).reshape(len(own), size)
    for mask, sha, one in zip(masks, part.shas, own, strict=True):
        mask[:] = random_mask(one, part.tensor, sha, part.start, size)
    densities = [one.density if params.rescale == "expected" else 0.0 for one in own]
    return kernels.dropped_sum(part.values, masks, densities, part.weights, params.scale)


def passthrough(deltas: Deltas, params: PassthroughParams, survey: None = None) -> Array:
    """What makes the base the one expert, times `factor`, which is for the weights themselves."""
    (delta,), (own,) = deltas.values, deltas.of_experts(params)
    if own.factor == 1:
        return delta
    base = deltas.base_values.reshape(delta.shape)
    return np.asarray(own.factor * (base + delta) - base)


def is_changed(deltas: Deltas, params: PassthroughParams, survey: None) -> bool:
    """Whether passthrough changes a part: if the expert does, or a factor."""
    return deltas.of_experts(params)[0].factor != 1 or deltas.changed()


def drop_changes(deltas: Deltas, params: DareParams) -> Iterator[Array]:
    """What DARE leaves of each expert's change, rescaled."""
    for delta, sha, own in zip(deltas.values, deltas.shas, deltas.of_experts(params), strict=True):
        is_kept = random_mask(own, deltas.tensor, sha, deltas.start, delta.size)
        kept = np.asarray(delta * is_kept.reshape(delta.shape))
        yield rescale(delta, kept, own.density, own.rescale)


def weighted_sum(values: Iterable[Array], weights: Sequence[float]) -> Array:
    """sum(w_i v_i), with one product in memory at a time."""
    pairs = zip(values, weights, strict=True)
    first, weight = next(pairs)
    total = first * weight
    for array, weight in pairs:
        total += array if weight == 1 else array * weight
    return total


def rescale(delta: Array, kept: Array, density: float, how: str) -> Array:
    """`kept` scaled up to replace all of delta: by 1/density, to the L1 norm of delta, or not."""
    if how == "none":
        return kept
    if how == "expected":
        return kept / density
    before = float(np.abs(delta).sum(dtype=np.float64))
    after = float(np.abs(kept).sum(dtype=np.float64))
    return kept * (before / after) if after else kept
