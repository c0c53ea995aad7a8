"""What was forgotten, by bin and by class, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.difficulty.bins import bins_of
from hubmerge.difficulty.forgotten import by_class, forgotten, lost, spread
from hubmerge.forgetting import Forgotten, OfClass
from tests.difficulty.worlds import answers


def test_a_row_is_forgotten_if_it_was_right_and_is_wrong() -> None:
    assert lost([True, True, False, False], [True, False, True, False]).tolist() == [
        False, True, False, False,
    ]  # fmt: skip


def test_bins_by_hand() -> None:
    before, after = [True] * 5 + [False], [True, False, True, False, False, True]
    said = forgotten(before, after, np.array([0, 0, 0, 1, 1, 1]), 2)
    assert said == Forgotten(counts=(1, 2), known=(3, 2))
    assert said.total == 3
    assert said.share == pytest.approx((1 / 3, 2 / 3))
    assert said.rate == pytest.approx((1 / 3, 1.0))
    assert said.hardest_share == pytest.approx(2 / 3)  # of two bins one is hard


def test_where_nothing_is_known_nothing_is_forgotten() -> None:
    said = forgotten([False] * 4, [True] * 4, bins_of(range(4), 2), 2)
    assert (said.total, said.share, said.rate) == (0, (0.0, 0.0), (0.0, 0.0))


def test_the_hardest_three_of_ten_bins() -> None:
    assert Forgotten((1,) * 7 + (2, 2, 9), (10,) * 10).hardest_share == 13 / 20


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_bins_hold_every_forgotten_row_once(rows: list[tuple[bool, bool]]) -> None:
    before, after = zip(*rows, strict=True)
    said = forgotten(before, after, bins_of(range(len(rows)), 3), 3)
    assert said.total == sum(b and not a for b, a in rows)
    assert sum(said.known) == sum(before)
    assert sum(said.share) == pytest.approx(1.0 if said.total else 0.0)
    assert all(0 <= rate <= 1 for rate in said.rate)


def test_classes_by_hand() -> None:
    before = answers([0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 2, 0])
    after = answers([0, 0, 0, 1, 2, 2], [2, 1, 0, 1, 0, 2])
    # Of class a one is taken for b and one for c: the first of them is told.
    assert by_class(before, after, ("a", "b", "c")) == (
        OfClass("a", 3, 2, "b"), OfClass("b", 1, 0), OfClass("c", 1, 1, "a"),
    )  # fmt: skip


def test_examples_are_spread_from_the_hardest_to_the_easiest() -> None:
    scores = np.arange(10) / 10
    rows = np.array([1, 3, 5, 7, 9])
    assert spread(rows, scores, 3).tolist() == [9, 5, 1]
    assert spread(rows, scores, 8).tolist() == [9, 7, 5, 3, 1]
    assert spread(rows, scores, 0).tolist() == []
