"""The leading singular triples of a matrix, without the others where these can be left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Triples = tuple[Float64, Float64, Float64]  # U [O, n], S [n], V^T [n, I]; largest first

_SMALL = 64  # the shorter side of a matrix of which all triples are found in no time
_MORE = 8  # columns of a block beyond the triples that are asked for
_TOLERANCE = 1e-6  # of the squared norm
_ROUNDING = 1e-14


def truncated_svd(matrix: Float64, count: int) -> Triples:
    """The `count` largest singular triples of a finite matrix [O, I], or all min(O, I) if fewer.

    Their squares add up to the largest sum possible, up to 1e-6 of the squared norm of the matrix;
    of a matrix whose rank is at most `count` nothing but rounding is left. The same matrix gives
    the same triples. They are found in a block Krylov space that grows until a further block adds
    nothing, with the Gram matrix where that would take a third of the shorter side, and by a full
    decomposition where a side is short.
    Source: Musco and Musco, https://arxiv.org/abs/1504.05477, algorithm 2
    """
    shorter = min(matrix.shape)
    if shorter > _SMALL and 9 * (count + _MORE) <= shorter:
        basis = _krylov_basis(matrix, count, shorter // 3)
        if basis is not None:
            return _within(matrix, basis, count)
    if shorter > _SMALL and count < shorter:
        return _by_gram(matrix, count)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :count], values[:count], right[:count]


def _krylov_basis(matrix: Float64, count: int, most: int) -> Float64 | None:
    """Orthonormal columns [O, n] that hold the leading left vectors; None if n is beyond `most`."""
    total, kept = float(np.vdot(matrix, matrix)), -np.inf
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], count + _MORE))
    block, _ = np.linalg.qr(matrix @ start)
    basis, rows = np.empty((len(matrix), 0)), np.empty((0, matrix.shape[1]))
    while basis.shape[1] + block.shape[1] <= most:
        basis, rows = np.hstack([basis, block]), np.vstack([rows, block.T @ matrix])
        squares = np.linalg.eigvalsh(rows @ rows.T)[-count:].sum()
        if squares - kept <= _TOLERANCE * total or total - squares <= _ROUNDING * total:
            return basis
        kept = squares
        block = matrix @ rows[-block.shape[1] :].T
        for _ in range(2):  # once leaves rounding errors
            block, _ = np.linalg.qr(block - basis @ (basis.T @ block))
    return None


def _by_gram(matrix: Float64, count: int) -> Triples:
    """From the eigenvectors of the product of the shorter side with itself."""
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = _by_gram(matrix.T, count)
        return right.T, values, left.T
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    return _within(matrix, vectors[:, -count:], count)


def _within(matrix: Float64, basis: Float64, count: int) -> Triples:
    """The leading triples of a matrix whose left vectors are combinations of orthonormal ones."""
    left, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left[:, :count], values[:count], right[:count]
