"""Bins and shares worked out by hand, and properties for any scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.difficulty.bins import assign_bins, bin_means, bin_shares, hardest_rows, rank_rows

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 2), min_size=1, max_size=60)


def test_rows_are_ranked_by_score_and_then_by_row() -> None:
    assert rank_rows([0.5, 0.1, 0.5, 0.2]).tolist() == [1, 3, 0, 2]


def test_bins_by_hand() -> None:
    assert assign_bins([0.9, 0.1, 0.5, 0.3], 2).tolist() == [1, 0, 1, 0]
    # Five rows in two bins: equal scores are ordered by row.
    assert assign_bins([1.0] * 5, 2).tolist() == [0, 0, 0, 1, 1]
    bins = assign_bins(np.arange(20)[::-1]).tolist()
    assert bins == [9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]


def test_shares_and_means_by_hand() -> None:
    bins = np.array([0, 1, 1, 2])
    assert bin_shares([1.0, 2.0, 3.0, 2.0], bins, 3).tolist() == [0.125, 0.625, 0.25]
    assert bin_shares([0.0] * 4, bins, 3).tolist() == [0.0, 0.0, 0.0]
    assert bin_means([1.0, 2.0, 3.0, 2.0], bins, 4).tolist() == [1.0, 2.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("share", "rows"), [(0.0, []), (0.25, [0]), (0.5, [2, 0]), (1.0, [1, 3, 2, 0])]
)
def test_the_hardest_by_hand(share: float, rows: list[int]) -> None:
    assert hardest_rows([0.9, 0.1, 0.5, 0.3], share).tolist() == rows


@given(SCORES, st.integers(1, 12))
def test_bins_have_equal_sizes_and_are_ordered(scores: list[float], count: int) -> None:
    bins = assign_bins(scores, count)
    sizes = np.bincount(bins, minlength=count)
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= 1
    ordered = sorted(range(len(scores)), key=lambda row: (scores[row], row))
    assert bins[ordered].tolist() == sorted(bins.tolist())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(1, 12))
def test_shares_add_up_to_one_or_are_zero(values: list[float], count: int) -> None:
    shares = bin_shares(values, assign_bins(values, count), count)
    assert shares.sum() == pytest.approx(1.0) or not any(values)
    assert (shares >= 0).all()


@given(SCORES, st.floats(0, 1))
def test_remaining_rows_are_not_harder_than_dropped_rows(scores: list[float], share: float) -> None:
    dropped = set(hardest_rows(scores, share).tolist())
    left = [score for row, score in enumerate(scores) if row not in dropped]
    assert len(dropped) == round(share * len(scores))
    assert max(left, default=0.0) <= min((scores[row] for row in dropped), default=9.0)
