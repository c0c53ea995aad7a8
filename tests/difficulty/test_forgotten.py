"""Forgotten rows by bin and by class, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.difficulty.bins import assign_bins
from hubmerge.difficulty.forgotten import (
    forgotten_by_bin,
    forgotten_by_class,
    forgotten_rows,
    spread_by_score,
)
from hubmerge.forgetting import ClassForgetting, ForgottenByBin
from tests.difficulty.builders import predictions


def test_a_row_is_forgotten_if_it_was_correct_and_is_wrong() -> None:
    assert forgotten_rows([True, True, False, False], [True, False, True, False]).tolist() == [
        False, True, False, False,
    ]  # fmt: skip


def test_bins_by_hand() -> None:
    before, after = [True] * 5 + [False], [True, False, True, False, False, True]
    predicted = forgotten_by_bin(before, after, np.array([0, 0, 0, 1, 1, 1]), 2)
    assert predicted == ForgottenByBin(counts=(1, 2), known=(3, 2))
    assert predicted.total == 3
    assert predicted.share == pytest.approx((1 / 3, 2 / 3))
    assert predicted.rate == pytest.approx((1 / 3, 1.0))
    assert predicted.hardest_share == pytest.approx(2 / 3)  # of two bins one is hard


def test_without_correct_rows_nothing_is_forgotten() -> None:
    predicted = forgotten_by_bin([False] * 4, [True] * 4, assign_bins(range(4), 2), 2)
    assert (predicted.total, predicted.share, predicted.rate) == (0, (0.0, 0.0), (0.0, 0.0))


def test_the_hardest_three_of_ten_bins() -> None:
    assert ForgottenByBin((1,) * 7 + (2, 2, 9), (10,) * 10).hardest_share == 13 / 20


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_bins_hold_every_forgotten_row_once(rows: list[tuple[bool, bool]]) -> None:
    before, after = zip(*rows, strict=True)
    predicted = forgotten_by_bin(before, after, assign_bins(range(len(rows)), 3), 3)
    assert predicted.total == sum(b and not a for b, a in rows)
    assert sum(predicted.known) == sum(before)
    assert sum(predicted.share) == pytest.approx(1.0 if predicted.total else 0.0)
    assert all(0 <= rate <= 1 for rate in predicted.rate)


def test_classes_by_hand() -> None:
    before = predictions([0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 2, 0])
    after = predictions([0, 0, 0, 1, 2, 2], [2, 1, 0, 1, 0, 2])
    # One row of class a is taken for b and one for c: the first class wins.
    assert forgotten_by_class(before, after, ("a", "b", "c")) == (
        ClassForgetting("a", 3, 2, "b"),
        ClassForgetting("b", 1, 0),
        ClassForgetting("c", 1, 1, "a"),
    )


def test_examples_are_spread_evenly_from_the_hardest_to_the_easiest() -> None:
    scores = np.arange(10) / 10
    rows = np.array([1, 3, 5, 7, 9])
    assert spread_by_score(rows, scores, 3).tolist() == [9, 5, 1]
    assert spread_by_score(rows, scores, 8).tolist() == [9, 7, 5, 3, 1]
    assert spread_by_score(rows, scores, 0).tolist() == []
