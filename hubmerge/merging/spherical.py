"""Methods that interpolate along spheres: slerp, nuslerp, multislerp, Karcher mean, model stock.

Tensors are taken as vectors. All their results are weighted sums of the base and the experts'
changes, with factors from inner products of whole tensors (see `gram`) or of rows. mergekit 0.1.5
has the same formulas; it computes angles in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.gram import Factors, Float64, GramSurvey, of_changes, of_models, row_products
from hubmerge.merging.params import (
    KarcherParams,
    ModelStockParams,
    MultislerpParams,
    NuslerpParams,
    SlerpParams,
)
from hubmerge.weights.dtypes import Array

_SMALL = 1e-8
_NEARLY_PARALLEL = 0.9995  # cosine


def slerp(deltas: Deltas, params: SlerpParams, survey: GramSurvey) -> Array:
    """The way from the base (t = 0) to the expert (t = 1) along the great circle of their vectors.

    Both keep their lengths: sin((1 - t) a) / sin(a) * base + sin(t a) / sin(a) * expert with the
    angle a between them; a straight line if abs(cos a) > 0.9995. Source: K. Shoemake, Animating
    Rotation with Quaternion Curves, https://doi.org/10.1145/325334.325242
    """

    def compute(products: Float64) -> Factors:
        base, both = products[0, 0], products[0, 0] + products[0, 1]
        expert = both + products[0, 1] + products[1, 1]
        pair = np.array([[base, both], [both, expert]])
        first, second = _great_circle(pair, params.t, lambda cos: abs(cos) > _NEARLY_PARALLEL)
        return Factors(first + second - 1, (second,))

    return survey.factors(deltas.tensor, compute).apply(deltas)


def nuslerp(deltas: Deltas, params: NuslerpParams, survey: GramSurvey | None) -> Array:
    """Slerp between two experts; the share of each is its weight over the sum of both.

    With space=changes their changes are interpolated, else their weights; with
    per=row each row of a tensor (its last axis) has an angle of its own.
    """
    total = sum(deltas.weights)
    share = deltas.weights[1] / total if abs(total) > _SMALL else 0.5

    def compute(products: Float64) -> Factors:
        pairs = _vectors(products, params.space)
        factors = _great_circle(pairs, share, lambda cos: np.sqrt(1 - cos**2) < _SMALL)
        return _to_factors(factors, params.space)

    if survey is not None:
        return survey.factors(deltas.tensor, compute).apply(deltas)
    return _by_rows(deltas, compute)


def multislerp(deltas: Deltas, params: MultislerpParams, survey: GramSurvey) -> Array:
    """The direction of the weighted mean of unit vectors, with the weighted mean of their lengths.

    Weights are normalised. Where the directions cancel, it is the weighted mean of the vectors. One
    expert is itself. As in mergekit, whose step in the tangent space at the mean is zero.
    """
    weights = np.array(deltas.weights) / sum(deltas.weights)

    def compute(products: Float64) -> Factors:
        if len(weights) == 1:
            return _to_factors((1.0,), params.space)
        vectors = _vectors(products, params.space)
        lengths = _lengths(vectors)
        shares = weights / (lengths + _SMALL)
        length = _length(shares, vectors)
        if length < _SMALL:
            return _to_factors(tuple(weights), params.space)
        return _to_factors(tuple(shares * (lengths @ weights) / length), params.space)

    return survey.factors(deltas.tensor, compute).apply(deltas)


def karcher(deltas: Deltas, params: KarcherParams, survey: GramSurvey) -> Array:
    """The Karcher mean of the experts' directions, with the weighted mean of their lengths.

    That is the point on the sphere with the least weighted sum of squared angles to them, found by
    steps of at most `iterations` until one is shorter than `tolerance`. Weights are normalised.
    Source: H. Karcher, Riemannian Center of Mass, https://doi.org/10.1002/cpa.3160300502
    """

    def compute(products: Float64) -> Factors:
        models = of_models(products)
        lengths = _lengths(models)
        chosen = np.flatnonzero(lengths > params.tolerance)
        if len(deltas.weights) == 1 or not len(chosen):
            return _to_factors((1 / len(lengths),) * len(lengths), "weights")
        weights = np.array(deltas.weights)[chosen] / sum(np.array(deltas.weights)[chosen])
        cosines = models[np.ix_(chosen, chosen)] / np.outer(lengths[chosen], lengths[chosen])
        mean = _mean_direction(cosines, weights, params) * (weights @ lengths[chosen])
        factors = np.zeros(len(lengths))
        factors[chosen] = mean / lengths[chosen]
        return _to_factors(tuple(factors), "weights")

    return survey.factors(deltas.tensor, compute).apply(deltas)


def model_stock(deltas: Deltas, params: ModelStockParams, survey: GramSurvey | None) -> Array:
    """t times the mean change, with t = N c / (1 + (N - 1) c) for the mean cosine c of two changes.

    N is the number of experts. With per=row each row has a t of its own.
    Source: https://arxiv.org/abs/2403.19522, equation 6 and its extension to N models
    """
    count = len(deltas.values)

    def compute(products: Float64) -> Factors:
        changes = of_changes(products)
        lengths = _lengths(changes)
        both = np.maximum(lengths[..., :, None] * lengths[..., None, :], 1e-300)
        upper = np.triu_indices(count, 1)
        cosine = np.clip((changes / both)[..., upper[0], upper[1]], -1, 1).mean(-1)
        below = 1 + (count - 1) * cosine
        ratio = np.where(np.abs(below) < _SMALL, 0, count * cosine / np.where(below, below, 1))
        return Factors(0.0, (ratio / count,) * count)

    if survey is not None:
        return survey.factors(deltas.tensor, compute).apply(deltas)
    return _by_rows(deltas, compute)


def is_changed(deltas: Deltas, params: Any, survey: GramSurvey | None) -> bool:
    """Whether any expert changed the tensor: then entries move that no expert changed."""
    return deltas.changed() if survey is None else survey.is_changed(deltas.tensor)


def _mean_direction(cosines: Float64, weights: Float64, params: KarcherParams) -> Float64:
    """The Karcher mean of unit vectors as their weighted sum: its factors."""

    def unit(factors: Float64) -> Float64 | None:
        length = _length(factors, cosines)
        return None if length < params.tolerance else factors / length

    first = np.eye(len(weights))[0]
    mean = unit(weights)
    mean = first if mean is None else mean
    for _ in range(params.iterations):
        along = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(along)
        sines = np.sin(angles)
        # The same direction is there already, and the opposite one is as far on every side.
        is_usable = (angles >= params.tolerance) & (sines > 1e-6)
        scales = np.where(is_usable, weights * angles / np.where(is_usable, sines, 1), 0)
        step = scales - (scales @ along) * mean
        length = _length(step, cosines)
        if length < params.tolerance:
            break
        moved = unit(np.cos(length) * mean + np.sin(length) / length * step)
        mean = mean if moved is None else moved
    return mean


def _great_circle(
    pairs: Float64, share: float, is_straight: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """The factors of two vectors, given their inner products [..., 2, 2] and the second's share."""
    lengths = np.maximum(_lengths(pairs), _SMALL)
    cosine = np.clip(pairs[..., 0, 1] / (lengths[..., 0] * lengths[..., 1]), -1, 1)
    straight = is_straight(cosine)
    angle = np.where(straight, 1.0, np.arccos(cosine))
    first = np.where(straight, 1 - share, np.sin((1 - share) * angle) / np.sin(angle))
    second = np.where(straight, share, np.sin(share * angle) / np.sin(angle))
    return first, second


def _vectors(products: Float64, space: str) -> Float64:
    return of_models(products) if space == "weights" else of_changes(products)


def _lengths(products: Float64) -> Float64:
    return np.asarray(np.sqrt(np.maximum(np.diagonal(products, axis1=-2, axis2=-1), 0)))


def _length(factors: Float64, products: Float64) -> float:
    """The length of a weighted sum of vectors."""
    return float(np.sqrt(np.maximum(factors @ products @ factors, 0)))


def _to_factors(factors: Sequence[Any], space: str) -> Factors:
    """The factors of changes; those of the experts' own weights also say what the base gets."""
    return Factors(sum(factors) - 1 if space == "weights" else 0.0, tuple(factors))


def _by_rows(deltas: Deltas, compute: Callable[[Float64], Factors]) -> Array:
    found = compute(row_products(deltas))
    shape = deltas.values[0].shape
    columns = [np.atleast_1d(factor)[:, None] for factor in (found.base, *found.changes)]
    rows = [values.reshape(-1, values.shape[-1] if values.ndim else 1) for values in deltas.values]
    flat = Deltas(deltas.tensor, rows, deltas.weights, deltas.shas, deltas.start, deltas.base)
    return Factors(columns[0], tuple(columns[1:])).apply(flat).reshape(shape)
