"""Methods on singular vectors: TSV, Iso-C, KnOTS and core space.

They merge the changes of matrices; the changes of other tensors are averaged, as the authors' code
does. They get whole tensors, and compute in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.gram import Float64
from hubmerge.merging.params import CoreSpaceParams, KnotsParams, SpectralParams
from hubmerge.merging.sparse import fuse
from hubmerge.merging.ties import threshold_rank
from hubmerge.weights.dtypes import Array

_NEGLIGIBLE = 1e-12  # of the largest eigenvalue, the square of a singular value


def iso_c(deltas: Deltas, params: SpectralParams, survey: None = None) -> Array:
    """The weighted sum of the changes with all singular values replaced by their mean.

    Directions without any change stay without.
    Source: https://arxiv.org/abs/2502.04959, section 4.1
    """
    return params.scale * _merge_matrices(deltas, lambda changes: _isotropic(_sum(changes)))


def tsv(deltas: Deltas, params: SpectralParams, survey: None = None) -> Array:
    """The sum of the leading singular triples of each change, made orthogonal to each other.

    Of T experts, each contributes the T-th part of its singular triples; the nearest orthogonal
    matrices replace their left and right vectors.
    Source: https://arxiv.org/abs/2412.00081, section 4 (TSV-Merge)
    """
    count = _tsv_count(deltas.values[0].shape, len(deltas.values))
    return params.scale * _merge_matrices(deltas, lambda changes: _tsv(changes, count))


def knots(deltas: Deltas, params: KnotsParams, survey: None = None) -> Array:
    """Changes are merged in the common basis of their left singular vectors.

    With merge=ties the trimming is within each tensor.
    Source: https://arxiv.org/abs/2410.19735, section 3
    """

    def merge(changes: Sequence[Float64]) -> Float64:
        left = _basis(_sum([change @ change.T for change in changes]))
        aligned = [left.T @ change for change in changes]
        return np.asarray(left @ _merge_entries(aligned, params.merge, params.density))

    return params.scale * _merge_matrices(deltas, merge, keeps_rows=True)


def core_space(deltas: Deltas, params: CoreSpaceParams, survey: None = None) -> Array:
    """Changes of low rank are merged as small matrices in the bases that all of them span.

    Without loss: U (sum U^T d V) V^T is the sum of the changes d. The paper takes the bases from
    the factors of adapters, which span the same spaces; only merge=ties depends on the choice.
    Source: https://arxiv.org/abs/2509.17786, section 4
    """
    merges: dict[str, Callable[[Sequence[Float64]], Float64]] = {
        "tsv": lambda cores: _tsv(cores, _tsv_count(cores[0].shape, len(cores))),
        "iso_c": lambda cores: _isotropic(_sum(cores)),
        "ties": lambda cores: _merge_entries(cores, "ties", params.density),
        "sum": _sum,
    }

    def merge(changes: Sequence[Float64]) -> Float64:
        left = _basis(_sum([change @ change.T for change in changes]))
        right = _basis(_sum([change.T @ change for change in changes]))
        cores = [left.T @ change @ right for change in changes]
        return np.asarray(left @ merges[params.merge](cores) @ right.T)

    return params.scale * _merge_matrices(deltas, merge)


def _merge_matrices(
    deltas: Deltas, merge: Callable[[Sequence[Float64]], Float64], keeps_rows: bool = False
) -> Array:
    """Merge the weighted changes of a matrix; the weighted mean of the changes of other tensors.

    Changes that are products are merged within the spaces of their factors, where they are small:
    the merge must be the same in any orthonormal bases, or with `keeps_rows` in any of the columns.
    """
    values, dtype = deltas.values, deltas.values[0].dtype
    weighted = [v.astype(np.float64) * w for v, w in zip(values, deltas.weights, strict=True)]
    if values[0].ndim != 2 or not values[0].size or not all(map(_is_finite, weighted)):
        return np.asarray(_sum(weighted) / len(weighted)).astype(dtype)
    small = _in_bases(deltas, keeps_rows)
    if small is None:
        return merge(weighted).astype(dtype)
    left, changes, right = small
    merged = left @ merge(changes)
    return (merged if right is None else merged @ right.T).astype(dtype)


def _in_bases(
    deltas: Deltas, keeps_rows: bool
) -> tuple[Float64, list[Float64], Float64 | None] | None:
    """Weighted products as left @ change @ right.T, where left and right have orthonormal columns.

    With `keeps_rows`, right is None, for the identity. None if a change is not a product, or if
    their ranks add up to no less than the shorter side.
    """
    products = [product for product in deltas.factors if product is not None]
    rank = sum(len(product.right) for product in products)
    if len(products) < len(deltas.values) or not 0 < rank < min(deltas.values[0].shape):
        return None
    lefts = [product.left.astype(np.float64) for product in products]
    rights = [product.right.astype(np.float64).T for product in products]
    if not all(map(_is_finite, (*lefts, *rights))):
        return None
    left, left_parts = _common_basis(lefts)
    right, right_parts = (None, rights) if keeps_rows else _common_basis(rights)
    changes = [
        weight * product.scale * (ours @ theirs.T)
        for weight, product, ours, theirs in zip(
            deltas.weights, products, left_parts, right_parts, strict=True
        )
    ]
    return left, changes, right


def _common_basis(matrices: Sequence[Float64]) -> tuple[Float64, list[Float64]]:
    """Orthonormal columns that span those of all matrices, and each matrix in that basis."""
    basis, parts = np.linalg.qr(np.hstack(matrices))
    ends = np.cumsum([matrix.shape[1] for matrix in matrices])[:-1]
    return basis, np.split(parts, ends, axis=1)


def _is_finite(values: Float64) -> bool:
    return bool(np.isfinite(values).all())


def _sum(changes: Sequence[Float64]) -> Float64:
    total = changes[0].copy()
    for change in changes[1:]:
        total += change
    return total


def _isotropic(total: Float64) -> Float64:
    left, values, right = _svd(total)
    return np.asarray((values.mean() if len(values) else 0.0) * left @ right)


def _tsv_count(shape: tuple[int, ...], experts: int) -> int:
    """How many singular triples each of the experts contributes to a matrix."""
    return max(min(shape, default=0) // experts, 1)


def _tsv(changes: Sequence[Float64], count: int) -> Float64:
    lefts, values, rights = [], [], []
    for change in changes:
        left, singular, right = _svd(change)
        lefts.append(left[:, :count])
        values.append(singular[:count])
        rights.append(right[:count])
    left, right = _orthogonal(np.hstack(lefts)), _orthogonal(np.vstack(rights))
    return np.asarray(left * np.concatenate(values) @ right)


def _svd(matrix: Float64) -> tuple[Float64, Float64, Float64]:
    """The singular triples whose values are not negligible."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.count_nonzero(values**2 > values[:1] ** 2 * _NEGLIGIBLE)) if len(values) else 0
    return left[:, :rank], values[:rank], right[:rank]


def _orthogonal(vectors: Float64) -> Float64:
    """The nearest matrix with orthogonal columns or rows."""
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    return np.asarray(left @ right)


def _basis(squares: Float64) -> Float64:
    """The eigenvectors [n, rank] of a symmetric matrix, largest first, without negligible ones."""
    values, vectors = np.linalg.eigh(squares)
    kept = values > values[-1] * _NEGLIGIBLE
    return np.asarray(vectors[:, kept][:, ::-1])


def _merge_entries(changes: Sequence[Float64], how: str, density: float) -> Float64:
    """The sum of arrays, their mean, or their merge by TIES within this tensor."""
    if how != "ties":
        total = _sum(changes)
        return total / len(changes) if how == "mean" else total
    trimmed = []
    for change in changes:
        rank = threshold_rank(change.size, density)
        size = np.abs(change)
        limit = np.partition(size, rank - 1, axis=None)[rank - 1] if rank and change.size else 0
        trimmed.append(change * (size >= limit))
    return fuse(trimmed, [1.0] * len(trimmed), elect=True, normalize=True, scale=1.0)
