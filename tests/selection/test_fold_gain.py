"""The interval of a gain from two halves: they choose on one another's rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hubmerge.selection import noise
from hubmerge.selection.fold_gain import fold_gain

from .builders import make_trial

NORMAL_95 = 1.96


def test_the_interval_is_a_tenth_wider_than_that_of_a_fixed_pair() -> None:
    first, second = make_trial("one", a="1101011" * 9), make_trial("other", a="0110010" * 9)
    value, low, high = noise.interval(first, second, 0)
    wider = fold_gain(first, second, 0)
    assert wider[0] == value
    assert wider[1:] == pytest.approx((value - 1.1 * (value - low), value + 1.1 * (high - value)))


@pytest.mark.parametrize("merges", [2, 3, 10, 50])
def test_halves_that_choose_on_one_anothers_rows_have_a_covariance(merges: int) -> None:
    """All merges are equally good and independent, and normal errors stand for means of rows.

    Without the covariance 95 % of the gains would be within 1.96 standard errors.
    """
    first, second = np.random.default_rng(merges).normal(size=(2, 40_000, merges))
    worlds = np.arange(len(first))
    ours, theirs = first[worlds, second.argmax(1)], second[worlds, first.argmax(1)]
    expected = first.max(1).mean() ** 2 / (merges - 1)
    assert np.mean(ours * theirs) == pytest.approx(expected, abs=0.02)
    gains = (ours + theirs) / math.sqrt(2)
    assert np.mean(np.abs(gains) < NORMAL_95) < 0.945
    assert np.mean(np.abs(gains) < 1.1 * NORMAL_95) == pytest.approx(0.945, abs=0.015)
