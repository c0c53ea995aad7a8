"""Differences between merges, paired over rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.selection.noise import difference, gain, paired_counts, stderr
from hubmerge.trials import RowResults

from .builders import make_trial


def test_only_rows_that_differ_count() -> None:
    first, second = make_trial("one", a="1110", b="1100"), make_trial("other", a="1001", b="1100")
    assert paired_counts(first, second) == {"a": (1, 1, 2), "b": (0, 4, 0)}
    assert gain(first, second) == pytest.approx((1 / 4 + 0) / 2)
    # The differences on the rows of a are +1 +1 0 -1: unbiased variance 11/12.
    assert stderr(first, second) == pytest.approx(math.sqrt(11 / 12 / 4) / 2)


def test_rows_that_only_one_measured_do_not_count() -> None:
    assert paired_counts(make_trial("one", a="11"), make_trial("other", a="0111")) == {
        "a": (0, 1, 1)
    }


def test_the_interval_matches_an_explicit_bootstrap() -> None:
    random = np.random.default_rng(3)
    bits = ["".join(random.choice(["0", "1"], 300, p=[1 - p, p])) for p in (0.7, 0.6)]
    first, second = make_trial("one", a=bits[0]), make_trial("other", a=bits[1])
    differences = np.array([int(x) - int(y) for x, y in zip(*bits, strict=True)])
    means = random.choice(differences, (4000, 300)).mean(axis=1)
    result = difference(first, second, seed=0)
    assert result.value == pytest.approx(differences.mean())
    assert [result.low, result.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert result.stderr == pytest.approx(means.std(), rel=0.1)


def test_the_interval_of_few_rows_is_that_of_students_t() -> None:
    """16 rows, 8 of them better and 8 worse: 2.131 standard errors of 0.258, not 1.96 of 0.25."""
    first, second = make_trial("one", a="01" * 8), make_trial("other", a="10" * 8)
    result = difference(first, second, 0)
    assert result.stderr == pytest.approx(math.sqrt(16 / 15 / 16))
    assert result.high == pytest.approx(2.131 * result.stderr, rel=0.05)
    assert result.low == pytest.approx(-result.high, rel=0.05)


@pytest.mark.parametrize("rows", [2, 3, 7, 30])
def test_differences_that_are_all_alike_have_no_spread(rows: int) -> None:
    """Rounding could make their variance negative, which has no root."""
    for number in range(50):
        first, second = (
            replace(make_trial(name), rows={"a": RowResults("", rows, (step * number,) * rows)})
            for name, step in (("one", 0.0193), ("other", 0.0041))
        )
        assert stderr(first, second) == pytest.approx(0.0, abs=1e-7)


def test_the_interval_of_four_rows_is_widened_by_both_factors() -> None:
    """Its ends are those of the rows: sqrt(4 / 3) unbiases, 3.182 / 1.960 is Student's t."""
    first, second = make_trial("one", a="01" * 2), make_trial("other", a="10" * 2)
    result = difference(first, second, 0)
    assert result.high == pytest.approx(math.sqrt(4 / 3) * 3.1824 / 1.9600, rel=1e-4)
    assert result.low == -result.high


def test_resampling_depends_on_the_pair_and_the_seed() -> None:
    first, second = make_trial("one", a="1101011" * 80), make_trial("other", a="011010101" * 80)
    assert difference(first, second, 1) == difference(first, second, 1)
    assert difference(first, second, 1).low != difference(first, second, 2).low


def test_the_order_of_tasks_changes_nothing() -> None:
    first, second = (
        make_trial("one", a="1101011" * 9, b="011" * 9),
        make_trial("other", a="01" * 30, b="10" * 9),
    )
    reordered = make_trial("one", b="011" * 9, a="1101011" * 9)
    assert difference(first, second, 0) == difference(reordered, second, 0)


@pytest.mark.parametrize(("rows", "significant"), [(20, False), (800, True)])
def test_a_gain_is_significant_only_with_enough_rows(rows: int, significant: bool) -> None:
    """55 % against 45 % of rows that differ."""
    tenth = rows // 20
    first = make_trial("one", a="1" * 11 * tenth + "0" * 9 * tenth)
    second = make_trial("other", a="0" * 11 * tenth + "1" * 9 * tenth)
    assert (difference(first, second, 0).low > 0) is significant


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_swapping_the_trials_changes_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    first = make_trial("one", a="".join("01"[x] for x, _ in pairs))
    second = make_trial("other", a="".join("01"[y] for _, y in pairs))
    assert gain(first, second) == pytest.approx(-gain(second, first))
    assert stderr(first, second) == pytest.approx(stderr(second, first))
    assert difference(first, first, 0).high == 0
