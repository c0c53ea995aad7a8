"""Factor changes of matrices into LoRA factors: of a whole matrix, or of a sum of products.

Shapes: O outputs, I inputs, R rank, r the rank of one term.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hubmerge.weights.dtypes import Array
from hubmerge.weights.truncated_svd import truncated_svd

Factors = tuple[Array, Array]  # A [R, I] and B [O, R]


def factorize(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """A [R, I], B [O, R] and the singular values kept of a matrix [O, I], largest first.

    The best approximation of that rank (Eckart and Young, https://doi.org/10.1007/BF02288367), with
    the root of each singular value in both factors. The largest entry of each row of A is positive,
    as the sign of a singular vector is arbitrary. A direction with singular value zero gets a unit
    row in A and zeros in B: it changes nothing and can be trained, like a new LoRA. Rows beyond
    min(O, I) are zero in both. Of a large matrix only the leading singular vectors are computed,
    which may keep up to 1e-6 less of the squared norm; see `truncated_svd`.
    """
    u, values, v = truncated_svd(np.asarray(matrix, np.float64), rank)
    a, b = _balance(u, values, v, rank)
    return a, b, values


def factorize_sum(terms: Sequence[Factors], rank: int) -> tuple[Array, Array, Array]:
    """Factors of the sum of B_i A_i, with A_i [r_i, I] and B_i [O, r_i], as `factorize`.

    The sum itself is not formed: it is the product of the stacks [B_1 B_2 ...] and [A_1; A_2; ...],
    so its singular vectors follow from the QR decompositions of both and the SVD of a core that is
    as small as the sum of the ranks. All its singular values are returned, not only those kept.
    float64 throughout.
    """
    a_stack = np.concatenate([np.asarray(a, np.float64) for a, _ in terms])
    b_stack = np.concatenate([np.asarray(b, np.float64) for _, b in terms], axis=1)
    b_basis, b_core = np.linalg.qr(b_stack)
    a_basis, a_core = np.linalg.qr(a_stack.T)
    u, values, v = np.linalg.svd(b_core @ a_core.T, full_matrices=False)
    a, b = _balance(b_basis @ u, values, v @ a_basis.T, rank)
    return a, b, values


def _balance(u: Array, values: Array, v: Array, rank: int) -> Factors:
    """Float32 factors from singular vectors u [O, n] and v [n, I]; see `factorize`."""
    a = np.zeros((rank, v.shape[1]), np.float32)
    b = np.zeros((u.shape[0], rank), np.float32)
    u, values, v = u[:, :rank], values[:rank], v[:rank]
    signs = np.sign(v[np.arange(len(v)), np.abs(v).argmax(axis=1)])
    noise = np.finfo(np.float32).eps * values[0]
    roots = np.sqrt(values)
    a[: len(v)] = v * (signs * np.where(values > noise, roots, 1.0))[:, None]
    b[:, : len(v)] = u * (signs * np.where(values > noise, roots, 0.0))
    return a, b
