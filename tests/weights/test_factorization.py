"""Factors of matrices and of sums of products: the best of their rank, with fixed signs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.weights.factorization import Factors, factorize, factorize_sum


def test_a_sum_by_hand() -> None:
    # (2, 0)^T (1, 0) + (0, 1)^T (0, -1) has the singular values 2 and 1.
    terms = [
        (np.array([[1.0, 0.0]]), np.array([[2.0], [0.0]])),
        (np.array([[0.0, -1.0]]), np.array([[0.0], [1.0]])),
    ]
    a, b, values = factorize_sum(terms, 1)
    np.testing.assert_allclose(values, [2, 1])
    np.testing.assert_allclose(a, [[2**0.5, 0]], atol=1e-7)
    np.testing.assert_allclose(b, [[2**0.5], [0]], atol=1e-7)
    a, b, _ = factorize_sum(terms, 2)
    np.testing.assert_allclose(b @ a, [[2, 0], [0, -1]], atol=1e-6)
    assert a[1, 1] > 0 > b[1, 1]


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    rank=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_a_sum_has_the_factors_of_its_matrix(
    shape: tuple[int, int], ranks: list[int], rank: int, seed: int
) -> None:
    rng, (outputs, inputs) = np.random.default_rng(seed), shape
    terms: list[Factors] = [
        (rng.normal(size=(r, inputs)), rng.normal(size=(outputs, r))) for r in ranks
    ]
    dense = sum((b @ a for a, b in terms), np.zeros(shape))
    a, b, values = factorize_sum(terms, rank)
    expected_a, expected_b, expected = factorize(dense, rank)
    assert (a.shape, b.shape) == ((rank, inputs), (outputs, rank))
    count = min(len(values), len(expected))
    np.testing.assert_allclose(values[:count], expected[:count], atol=1e-12 * values[0] + 1e-9)
    scale = np.abs(dense).max()
    np.testing.assert_allclose(b @ a, expected_b @ expected_a, atol=1e-5 * scale)


def test_ranks_beyond_the_sum_are_zero() -> None:
    a, b, values = factorize_sum([(np.ones((1, 3)), np.ones((2, 1)))], 4)
    assert values.shape == (1,)
    assert not a[1:].any()
    assert not b[:, 1:].any()
    assert values[0] == pytest.approx(6**0.5)


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rank=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_factors_are_the_best_of_their_rank(shape: tuple[int, int], rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=shape)
    a, b, values = factorize(matrix, rank)
    all_values = np.linalg.svd(matrix, compute_uv=False)
    residual = np.linalg.norm(matrix - b.astype(np.float64) @ a) ** 2
    np.testing.assert_allclose(values, all_values[:rank])
    np.testing.assert_allclose(residual, np.sum(all_values[rank:] ** 2), atol=1e-5)
    assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
    # The root of each singular value is in both factors.
    np.testing.assert_allclose(
        np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-4, atol=1e-6
    )
    peaks = a[np.arange(rank), np.abs(a).argmax(axis=1)]
    assert (peaks >= 0).all()


def test_directions_beyond_the_true_rank_are_trainable() -> None:
    a, b, _ = factorize(np.outer([1.0, 2.0, 2.0], [3.0, 0.0, 4.0]), 3)
    np.testing.assert_allclose(b @ a, np.outer([1, 2, 2], [3, 0, 4]), atol=1e-5)
    assert not b[:, 1:].any()
    np.testing.assert_allclose(a[1:] @ a[1:].T, np.eye(2), atol=1e-6)
    a, b, _ = factorize(np.zeros((2, 3)), 2)
    assert not b.any()
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6, 1e-3])
def test_adapters_that_are_nearly_equal_are_added_exactly(noise: float) -> None:
    """As experts that were trained for a few steps from the same start: nearly dependent rows."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 300)), rng.normal(size=(200, 8))
    terms: list[Factors] = [
        (a + noise * rng.normal(size=a.shape), b * (n + 1) + noise * rng.normal(size=b.shape))
        for n in range(3)
    ]
    dense = sum((right @ left for left, right in terms), np.zeros((200, 300)))
    left, right, values = factorize_sum(terms, 24)
    expected = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(values, expected[:24], atol=1e-9 * expected[0])
    np.testing.assert_allclose(right @ left, dense, atol=1e-5 * np.abs(dense).max())


def test_a_stack_of_any_size_is_added_exactly() -> None:
    """One block and a rest, and more columns than fit in a block."""
    rng = np.random.default_rng(0)
    for rank, outputs in ((8, 1000), (250, 600)):
        terms: list[Factors] = [
            (rng.normal(size=(rank, 700)), rng.normal(size=(outputs, rank))) for _ in range(2)
        ]
        dense = sum((right @ left for left, right in terms), np.zeros((outputs, 700)))
        left, right, _ = factorize_sum(terms, 2 * rank)
        np.testing.assert_allclose(right @ left, dense, atol=1e-5 * np.abs(dense).max())


@pytest.mark.parametrize("noise", [1e-3, 1e-5, 1e-7])
def test_adapters_that_nearly_cancel_are_added_exactly(noise: float) -> None:
    """What is left is in the directions in which nearly dependent rows differ."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 300)), rng.normal(size=(200, 8))
    change = rng.normal(size=a.shape) * 2.0 ** -np.arange(8)[:, None]
    dense = noise * b @ change
    left, right, values = factorize_sum([(a + noise * change, b), (a, -b)], 4)
    expected = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(values[:8], expected[:8], rtol=1e-5)
    error = np.linalg.norm(right @ left - dense)
    assert error == pytest.approx(np.linalg.norm(expected[4:]), rel=1e-4)
