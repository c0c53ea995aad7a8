"""The race of the study of row orders, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.studies.selection.row_order import lead_variance, race, simulate

FIXED = np.arange(16)


def test_a_fixed_order_gives_up_by_the_rows_so_far() -> None:
    lead = np.zeros(16)
    lead[:4] = -1, 0, -1, -1
    # Two rows: mean -1/2, s.e. 1/2, so not yet. Four: mean -3/4, s.e. 1/4.
    assert race(lead, FIXED) == 4
    assert race(-lead, FIXED) == 16
    assert race(lead, FIXED[::-1].copy()) == 16  # eight equal rows: no reason to give up


@pytest.mark.parametrize(("variance", "rows"), [(0.01, 2), (0.1, 4), (0.25, 8), (0.6, 16)])
def test_with_a_prior_the_rows_to_come_are_equal_on_average(variance: float, rows: int) -> None:
    lead = np.zeros(16)
    lead[:4] = -1, 0, -1, -1
    # Two rows: -1 against 2 sqrt(14 v). Four: -3 against 2 sqrt(12 v). Eight: 2 sqrt(8 v).
    assert race(lead, FIXED, np.full(16, variance)) == rows


def test_rows_differ_where_the_first_trials_did_but_are_never_certain() -> None:
    first = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]], float)
    # 2 x 1/2 x 1/2 x 4/3 on the second row, and a quarter of the mean of all three elsewhere.
    np.testing.assert_allclose(lead_variance(first), [1 / 18, 2 / 3, 1 / 18])


def test_every_order_races_the_same_challengers() -> None:
    trials = np.random.default_rng(0).integers(0, 2, (45, 16)).astype(float)
    races = list(simulate(trials, 0))
    names = ["fixed", "informative of 20", "informative of 40"]
    assert [name for name, *_ in races] == names * 5
    assert all(len({better for *_, better in races[n : n + 3]}) == 1 for n in range(0, 15, 3))
