"""Methods that drop changes before they are merged: DARE-TIES, breadcrumbs, DELLA, SCE.

They differ in which changes are kept; `fuse` merges what is left. mergekit has the same methods
with other defaults: it scales kept changes to the L1 norm of all (rescale=l1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging.deltas import DeltaPasses, Deltas, map_parts
from hubmerge.merging.methods import drop_changes, rescale, weighted_sum
from hubmerge.merging.params import (
    BreadcrumbsParams,
    DareTiesParams,
    DellaParams,
    MergekitTiesParams,
    SceParams,
)
from hubmerge.merging.random_masks import random_bits
from hubmerge.merging.tensor_ranks import Ranks, tensor_ranks
from hubmerge.merging.trim import magnitudes
from hubmerge.weights.dtypes import Array

SMALL = 1e-8


def fuse(
    kept: Sequence[Array], weights: Sequence[float], elect: bool, normalize: bool, scale: float
) -> Array:
    """scale times the weighted sum of the changes, or their weighted mean if `normalize`.

    With `elect` only changes count whose weighted value has the sign of the weighted sum; the sum
    of zero is positive. The mean divides by the weights of those that count, and where these add up
    to zero it is the sum.
    """
    if not elect:
        total = weighted_sum(kept, weights)
        divisor = sum(weights) if normalize and abs(sum(weights)) > SMALL else 1.0
        return np.asarray(scale * (total / divisor))
    weighted = [delta * weight for delta, weight in zip(kept, weights, strict=True)]
    positive = weighted_sum(weighted, [1.0] * len(weighted)) >= 0
    agreeing = [delta * ((delta > 0) == positive) for delta in weighted]
    total = weighted_sum(agreeing, [1.0] * len(agreeing))
    if not normalize:
        return np.asarray(scale * total)
    weight = weighted_sum((delta != 0 for delta in agreeing), weights).astype(total.dtype)
    return np.asarray(scale * (total / np.where(np.abs(weight) < SMALL, 1, weight)))


def dare_ties(deltas: Deltas, params: DareTiesParams, survey: None = None) -> Array:
    """Drop changes at random as DARE does, then add up those that have the elected sign.

    Source: https://arxiv.org/abs/2311.03099 with https://arxiv.org/abs/2306.01708, as mergekit
    combines them: nothing is trimmed by size.
    """
    kept = list(drop_changes(deltas, params))
    return fuse(kept, deltas.weights, True, params.normalize, params.scale)


def ties_mergekit(deltas: Deltas, params: MergekitTiesParams, survey: Ranks) -> Array:
    """TIES as mergekit has it: each tensor by itself, and signs elected by weighted changes.

    The max(1, int(density n)) largest of n changes are kept, and all that tie with the last.
    """
    kept = [
        rescale(delta, delta * (magnitudes(delta) >= smallest), 1.0, params.rescale)
        for delta, (smallest,) in zip(deltas.values, survey[deltas.tensor], strict=True)
    ]
    return fuse(kept, deltas.weights, True, params.normalize, params.scale)


def survey_ties_mergekit(passes: DeltaPasses, params: MergekitTiesParams) -> Ranks:
    """By tensor and expert, the smallest magnitude that is kept."""

    def kept_of(deltas: Deltas, column: int, size: int) -> tuple[int]:
        return (max(int(deltas.of_experts(params)[column].density * size), 1),)

    return tensor_ranks(passes, lambda deltas: deltas.values, kept_of)


def breadcrumbs(deltas: Deltas, params: BreadcrumbsParams, survey: Ranks) -> Array:
    """Leave out the largest and the smallest changes of each tensor, and add up the rest.

    Of n changes the int(gamma n) largest are left out and the next int(density n) are kept, with
    all that tie with them. Source: https://arxiv.org/abs/2312.06795, section 3
    """
    return _fuse_crumbs(deltas, params, survey, elect=False)


def breadcrumbs_ties(deltas: Deltas, params: BreadcrumbsParams, survey: Ranks) -> Array:
    """Breadcrumbs, of which those are added up that have the elected sign; mergekit's variant."""
    return _fuse_crumbs(deltas, params, survey, elect=True)


def survey_breadcrumbs(passes: DeltaPasses, params: BreadcrumbsParams) -> Ranks:
    """By tensor and expert, the smallest and the largest magnitude that is kept."""

    def kept_of(deltas: Deltas, column: int, size: int) -> tuple[int, int]:
        own = deltas.of_experts(params)[column]
        kept = int(own.density * size)
        left_out = min(int(own.gamma * size), size - kept)
        return (left_out + kept if kept else 0), left_out + 1

    return tensor_ranks(passes, lambda deltas: deltas.values, kept_of)


def _fuse_crumbs(deltas: Deltas, params: BreadcrumbsParams, survey: Ranks, elect: bool) -> Array:
    kept = []
    for delta, (smallest, largest), own in zip(
        deltas.values, survey[deltas.tensor], deltas.of_experts(params), strict=True
    ):
        size = magnitudes(delta)
        crumbs = delta * (((size >= smallest) & (size <= largest)) | (own.density == 1))
        kept.append(rescale(delta, crumbs, 1.0, params.rescale))
    return fuse(kept, deltas.weights, elect, params.normalize, params.scale)


def della(deltas: Deltas, params: DellaParams, survey: None = None) -> Array:
    """Drop changes at random, small ones of a row more often, then the mean of the elected sign.

    Within each row (the last axis) the probability to be kept grows with the rank of the magnitude
    from density - epsilon to density + epsilon; what is kept is divided by it.
    Source: https://arxiv.org/abs/2406.11617, section 3 (MAGPRUNE)
    """
    return fuse(
        list(_kept_by_rank(deltas, params)), deltas.weights, True, params.normalize, params.scale
    )


def della_linear(deltas: Deltas, params: DellaParams, survey: None = None) -> Array:
    """DELLA without the election: all that is kept is added up; mergekit's variant."""
    kept = list(_kept_by_rank(deltas, params))
    return fuse(kept, deltas.weights, False, params.normalize, params.scale)


def _kept_by_rank(deltas: Deltas, params: DellaParams) -> Iterator[Array]:
    for delta, sha, own in zip(deltas.values, deltas.shas, deltas.of_experts(params), strict=True):
        if own.density == 1:
            yield delta
            continue
        rows = delta.reshape(-1, delta.shape[-1] if delta.ndim else 1)
        order = np.argsort(np.abs(rows), axis=1, kind="stable")
        ranks = np.empty_like(rows)
        steps = np.arange(rows.shape[1], dtype=rows.dtype) / max(rows.shape[1] - 1, 1)
        np.put_along_axis(ranks, order, np.broadcast_to(steps, rows.shape), axis=1)
        likely = ((own.density - own.epsilon) + ranks * (2 * own.epsilon)).reshape(delta.shape)
        bits = random_bits(own.seed, deltas.tensor, sha, deltas.start, delta.size)
        kept = delta * (bits.reshape(delta.shape) < likely.astype(np.float64) * 2**32)
        if own.rescale == "expected":
            yield kept / likely
        else:
            yield rescale(delta, kept, own.density, own.rescale)


@dataclass(frozen=True)
class SceSurvey:
    """By tensor, the smallest variance that is kept and the weight of each expert."""

    smallest: dict[str, np.float32]
    weights: dict[str, NDArray[np.float64]]


def sce(deltas: Deltas, params: SceParams, survey: SceSurvey) -> Array:
    """Select, calculate, erase: the mean of the changes that vary most and have the elected sign.

    Of each tensor those changes are kept whose variance over the experts is among the
    int(density n) largest of the n that vary at all; at density 1 all are kept. An expert's weight
    is the mean of its squared changes, over the sum of all experts'. Signs are elected by the plain
    sum, and the user's weights are not used. Source: https://arxiv.org/abs/2408.07990, section 3.3
    """
    kept = _select(deltas, survey.smallest)
    positive = weighted_sum(kept, [1.0] * len(kept)) >= 0
    total, weight = np.zeros_like(kept[0]), np.zeros_like(kept[0])
    for delta, share in zip(kept, survey.weights[deltas.tensor], strict=True):
        counts = ((delta > 0) == positive) & (delta != 0)
        total += delta * counts * delta.dtype.type(share)
        weight += counts * delta.dtype.type(share)
    return np.asarray(params.scale * (total / np.maximum(weight, 1e-6)))


def survey_sce(passes: DeltaPasses, params: SceParams) -> SceSurvey:
    """Two passes for the smallest variances, and one for the weights."""

    def variances(deltas: Deltas) -> list[Array]:
        variance = _variance(deltas.values)
        return [variance[variance > 0]]

    def kept_of(deltas: Deltas, column: int, size: int) -> tuple[int]:
        density = deltas.of_tensor(params).density
        # More than there are: the smallest variance is 0, and changes that do not vary are kept.
        return (int(density * size) if density < 1 else size + 1,)

    ranks = tensor_ranks(passes, variances, kept_of)
    smallest = {name: columns[0][0] for name, columns in ranks.items()}

    def squares(deltas: Deltas) -> tuple[str, list[float]]:
        kept = _select(deltas, smallest)
        return deltas.tensor, [float(np.square(delta, dtype=np.float64).sum()) for delta in kept]

    sums: dict[str, NDArray[np.float64]] = {}
    for name, part in map_parts(passes, squares):
        sums[name] = sums[name] + part if name in sums else np.array(part)
    shares = {
        name: s / s.sum() if s.sum() else np.full(len(s), 1 / len(s)) for name, s in sums.items()
    }
    return SceSurvey(smallest, shares)


def _select(deltas: Deltas, smallest: dict[str, np.float32]) -> list[Array]:
    # Ranked as float32, so compared as float32.
    kept = _variance(deltas.values).astype(np.float32) >= smallest[deltas.tensor]
    return [delta * kept for delta in deltas.values]


def _variance(values: Sequence[Array]) -> Array:
    mean = weighted_sum(values, [1.0] * len(values)) / len(values)
    return np.asarray(sum(np.square(value - mean) for value in values) / len(values))
