"""Leading singular triples of large matrices: as good as those of a full decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from hubmerge.weights.truncated_svd import Float64, truncated_svd


def make_matrix(rows: int, columns: int, decay: float, rank: int | None = None) -> Float64:
    """A matrix whose singular values are about 1, 2^-decay, 3^-decay, ...; up to a rank."""
    source, shorter = np.random.default_rng(rows + columns), min(rows, columns)
    left, right = (np.linalg.qr(source.normal(size=(n, shorter)))[0] for n in (rows, columns))
    values = np.arange(1, shorter + 1.0) ** -decay
    values[rank:] = 0
    return np.asarray(left * values @ right.T)


@pytest.mark.parametrize("decay", [0, 0.1, 0.5, 1, 3])
@pytest.mark.parametrize("shape", [(300, 200), (150, 420)], ids=str)
@pytest.mark.parametrize("count", [1, 8, 40, 149])
def test_as_much_is_kept_as_can_be(shape: tuple[int, int], decay: float, count: int) -> None:
    matrix = make_matrix(*shape, decay)
    left, values, right = truncated_svd(matrix, count)
    best = np.linalg.svd(matrix, compute_uv=False)[:count]
    total = np.linalg.norm(matrix) ** 2
    residual = np.linalg.norm(matrix - left * values @ right) ** 2
    assert residual <= total - best @ best + 1e-6 * total
    np.testing.assert_allclose(residual, total - values @ values, atol=1e-12 * total)
    np.testing.assert_allclose(left.T @ left, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(right @ right.T, np.eye(count), atol=1e-12)
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("rank", [0, 1, 7, 8])
def test_a_low_rank_is_found_exactly(rank: int) -> None:
    matrix = make_matrix(200, 260, 0.3, rank)
    left, values, right = truncated_svd(matrix, 8)
    np.testing.assert_allclose(left * values @ right, matrix, atol=1e-14)
    np.testing.assert_allclose(right @ right.T, np.eye(8), atol=1e-12)
    assert (values[rank:] < 1e-14).all()


def test_more_than_all_are_all() -> None:
    matrix = make_matrix(70, 90, 1)
    left, values, right = truncated_svd(matrix, 99)
    assert (left.shape, values.shape, right.shape) == ((70, 70), (70,), (70, 90))
    np.testing.assert_allclose(left * values @ right, matrix, atol=1e-12)


def test_the_same_matrix_has_the_same_triples() -> None:
    matrix = make_matrix(200, 200, 0.7)
    for first, second in zip(
        truncated_svd(matrix, 8), truncated_svd(matrix.copy(), 8), strict=True
    ):
        assert first.tobytes() == second.tobytes()
