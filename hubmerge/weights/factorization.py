"""Factor changes of matrices into LoRA factors: of a whole matrix, or of a sum of products.

Shapes: O outputs, I inputs, R rank, r the rank of one term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hubmerge.weights.dtypes import Array
from hubmerge.weights.lora import SERIAL
from hubmerge.weights.truncated_svd import truncated_svd

Factors = tuple[Array, Array]  # A [R, I] and B [O, R]
# The smallest eigenvalue of a Gram matrix, over the largest, whose root has the precision that
# float32 factors need: it loses as many of float64's 16 digits as this has.
_SMALLEST = 1e-8
_FEWEST_ROWS = 8  # in products of blocks


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
    so its singular vectors follow from orthonormal bases of both and the SVD of a core that is as
    small as the sum of the ranks. All its singular values are returned, not only those kept.
    float64 throughout.
    """
    a_stack = np.concatenate([np.asarray(a, np.float64) for a, _ in terms])
    b_stack = np.concatenate([np.asarray(b, np.float64) for _, b in terms], axis=1)
    b_core, expand_b = _split_off_basis(b_stack)
    a_core, expand_a = _split_off_basis(np.ascontiguousarray(a_stack.T))
    u, values, v = np.linalg.svd(b_core @ a_core.T, full_matrices=False)
    a, b = _balance(expand_b(u[:, :rank]), values, expand_a(v[:rank].T).T, rank)
    return a, b, values


def _split_off_basis(stack: Array) -> tuple[Array, Callable[[Array], Array]]:
    """R and the product with Q, such that a stack [rows, n] is Q R with orthonormal columns Q.

    R is the root of the Gram matrix: QR decompositions take five times as long. They are for
    columns that are nearly dependent, as their squares would not be precise.
    """
    squares, vectors = np.linalg.eigh(_multiply_blocks(stack, stack))
    if squares[0] <= _SMALLEST * squares[-1]:
        basis, core = np.linalg.qr(stack)
        return core, lambda coefficients: basis @ coefficients
    roots = np.sqrt(squares)
    return roots[:, None] * vectors.T, lambda c: _expand_blocks(stack, (vectors / roots) @ c)


def _multiply_blocks(left: Array, right: Array) -> Array:
    """left.T @ right, of arrays [rows, ...], in blocks so small that BLAS starts no threads.

    Where other programs use the cores, its threads wait for each other longer than they multiply.
    """
    step = SERIAL // max(left.shape[1] * right.shape[1], 1)
    if step < _FEWEST_ROWS:
        return np.asarray(left.T @ right)
    whole = len(left) - len(left) % step
    blocks = left[:whole].reshape(-1, step, left.shape[1])
    others = right[:whole].reshape(-1, step, right.shape[1])
    product = np.matmul(blocks.transpose(0, 2, 1), others).sum(axis=0)
    return np.asarray(product + left[whole:].T @ right[whole:])


def _expand_blocks(stack: Array, coefficients: Array) -> Array:
    """stack @ coefficients, in such blocks."""
    step = SERIAL // max(stack.shape[1] * coefficients.shape[1], 1)
    if step < _FEWEST_ROWS:
        return np.asarray(stack @ coefficients)
    rows = range(0, len(stack), step)
    return np.concatenate([stack[row : row + step] @ coefficients for row in rows])


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
