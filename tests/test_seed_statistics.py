"""Student's t, its intervals, and Holm's correction: worked by hand, and against scipy 1.17."""

from __future__ import annotations

import math

import pytest

from hubmerge.seed_statistics import (
    holm,
    interval,
    mean,
    p_above,
    stderr,
    student_quantile,
    student_tail,
)

# scipy.stats.t.sf(t, degrees)
TAILS = [
    (0.5, 1, 0.35241638234956674),
    (2.0, 2, 0.09175170953613698),
    (-1.5, 3, 0.8847080673775886),
    (3.0, 4, 0.019970984035859413),
    (2.5, 9, 0.016930913841492867),
    (10.0, 2, 0.004926228511662845),
    (1.0, 100, 0.15986207789206167),
]
# scipy.stats.t.isf(tail, degrees)
QUANTILES = [
    (0.025, 1, 12.706204736174705),
    (0.025, 2, 4.302652729749464),
    (0.05, 2, 2.9199855803537256),
    (0.025, 9, 2.2621571627982053),
    (0.005, 4, 4.604094871349993),
]


@pytest.mark.parametrize(("t", "degrees", "tail"), TAILS)
def test_the_tail_is_that_of_scipy(t: float, degrees: int, tail: float) -> None:
    assert student_tail(t, degrees) == pytest.approx(tail, abs=1e-14)


@pytest.mark.parametrize(("tail", "degrees", "t"), QUANTILES)
def test_the_quantile_is_that_of_scipy(tail: float, degrees: int, t: float) -> None:
    assert student_quantile(tail, degrees) == pytest.approx(t, rel=1e-12)


def test_a_sample_worked_by_hand() -> None:
    values = (1.0, 2.0, 3.0)  # variance 1, standard error 1 / sqrt(3)
    assert (mean(values), stderr(values)) == (2.0, pytest.approx(1 / math.sqrt(3)))
    low, high = interval(values) or (0.0, 0.0)
    half = 4.302652729749464 / math.sqrt(3)  # the quantile above
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    # t = 2 sqrt(3); with two degrees of freedom the tail is (1 - t / sqrt(2 + t^2)) / 2.
    assert p_above(values) == pytest.approx((1 - math.sqrt(12 / 14)) / 2)
    assert p_above(values, threshold=4.0) == pytest.approx((1 + math.sqrt(12 / 14)) / 2)


def test_p_values_are_those_of_scipys_t_test() -> None:
    values = (0.012, -0.001, 0.011)
    assert p_above(values) == pytest.approx(0.11060422102736622)
    assert interval(values) == pytest.approx((-0.010637361392966723, 0.02530402805963339))


def test_one_seed_has_no_interval_and_equal_seeds_no_spread() -> None:
    assert (stderr((0.5,)), interval((0.5,)), p_above((0.5,))) == (0.0, None, None)
    assert (p_above((0.1, 0.1)), p_above((0.0, 0.0)), p_above((-0.1, -0.1))) == (0.0, 1.0, 1.0)
    assert interval((0.1, 0.1)) == (0.1, 0.1)
    assert math.isnan(mean(()))


def test_holm_multiplies_by_the_claims_that_are_left_and_never_falls() -> None:
    # 3 x 0.01; 2 x 0.04; the largest would be 0.05, below the one before it.
    assert holm([0.05, 0.01, 0.04]) == pytest.approx([0.08, 0.03, 0.08])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
