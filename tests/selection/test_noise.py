"""Differences between merges, paired over rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.selection.noise import counts, difference, gain, stderr

from .worlds import trial


def test_only_rows_that_differ_tell_something() -> None:
    one, other = trial("one", a="1110", b="1100"), trial("other", a="1001", b="1100")
    assert counts(one, other) == {"a": (1, 1, 2), "b": (0, 4, 0)}
    assert gain(one, other) == pytest.approx((1 / 4 + 0) / 2)
    # Of the rows of a, +1 +1 0 -1: unbiased variance 11/12.
    assert stderr(one, other) == pytest.approx(math.sqrt(11 / 12 / 4) / 2)


def test_rows_that_one_was_not_asked_do_not_count() -> None:
    assert counts(trial("one", a="11"), trial("other", a="0111")) == {"a": (0, 1, 1)}


def test_the_interval_is_that_of_drawing_rows_anew() -> None:
    random = np.random.default_rng(3)
    bits = ["".join(random.choice(["0", "1"], 300, p=[1 - p, p])) for p in (0.7, 0.6)]
    one, other = trial("one", a=bits[0]), trial("other", a=bits[1])
    told = np.array([int(x) - int(y) for x, y in zip(*bits, strict=True)])
    means = random.choice(told, (4000, 300)).mean(axis=1)
    found = difference(one, other, seed=0)
    assert found.value == pytest.approx(told.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert found.stderr == pytest.approx(means.std(), rel=0.1)


def test_the_same_pair_draws_the_same_rows_and_another_seed_others() -> None:
    one, other = trial("one", a="1101011" * 80), trial("other", a="011010101" * 80)
    assert difference(one, other, 1) == difference(one, other, 1)
    assert difference(one, other, 1).low != difference(one, other, 2).low


def test_the_order_of_tasks_draws_nothing_else() -> None:
    one, other = trial("one", a="1101011" * 9, b="011" * 9), trial("other", a="01" * 30, b="10" * 9)
    turned = trial("one", b="011" * 9, a="1101011" * 9)
    assert difference(one, other, 0) == difference(turned, other, 0)


@pytest.mark.parametrize(("rows", "clear"), [(20, False), (800, True)])
def test_a_lead_is_clear_only_with_enough_rows(rows: int, clear: bool) -> None:
    """55 % against 45 % of rows that differ."""
    tenth = rows // 20
    one = trial("one", a="1" * 11 * tenth + "0" * 9 * tenth)
    other = trial("other", a="0" * 11 * tenth + "1" * 9 * tenth)
    assert difference(one, other, 0).is_clear is clear


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_to_swap_sides_is_to_change_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    one = trial("one", a="".join("01"[x] for x, _ in pairs))
    other = trial("other", a="".join("01"[y] for _, y in pairs))
    assert gain(one, other) == pytest.approx(-gain(other, one))
    assert stderr(one, other) == pytest.approx(stderr(other, one))
    assert difference(one, one, 0).high == 0
