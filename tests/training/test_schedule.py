"""Which steps are pushed, and the learning-rate schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import UsageError
from hubmerge.training.schedule import (
    branch_points,
    cooldown_factor,
    cooldown_length,
    is_due,
    lr_factor,
    push_steps,
)

TOTALS = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("rule", "total", "steps"),
    [
        ("2^k", 16, (1, 2, 4, 8, 16)),
        ("2^k", 20, (1, 2, 4, 8, 16, 20)),
        ("3^k", 10, (1, 3, 9, 10)),
        ("100", 250, (100, 200, 250)),
        ("100", 50, (50,)),
        ("8, 64,16", 100, (8, 16, 64, 100)),
    ],
)
def test_steps_by_hand(rule: str, total: int, steps: tuple[int, ...]) -> None:
    assert push_steps(rule, total) == steps


@pytest.mark.parametrize("rule", ["", "0", "1^k", "0^k", "-4", "2^", "often", "8,", "8,x", "0,8"])
def test_invalid_rules_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="is not a rule for steps"):
        push_steps(rule, 100)


def test_steps_beyond_the_run_are_refused() -> None:
    with pytest.raises(UsageError, match="includes step 128, but the run has 100") as refused:
        push_steps("64,128,256", 100)
    assert "--steps 256" in refused.value.hint


@given(
    TOTALS,
    st.one_of(
        st.integers(2, 9).map("{}^k".format),
        st.integers(1, 6000).map(str),
        st.lists(st.integers(1, 5000), min_size=2).map(lambda steps: ",".join(map(str, steps))),
    ),
)
def test_steps_rise_within_the_run_and_end_with_it(total: int, rule: str) -> None:
    try:
        steps = push_steps(rule, total)
    except UsageError:
        assert max(map(int, rule.split(","))) > total
        return
    assert list(steps) == sorted(set(steps))
    assert [step for step in range(1, total) if is_due(rule, step)] == list(steps)[:-1]
    assert steps[0] >= 1
    assert steps[-1] == total


def test_rates_by_hand() -> None:
    # Two steps of warm-up, then half a cosine over eight: 1/2 (1 + cos(pi k/8)).
    cosine = [lr_factor(step, 10, 2, "cosine", 2) for step in range(10)]
    expected = [0.5, 1, 1, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]
    assert cosine == pytest.approx(expected, abs=1e-5)
    for kind in ("constant", "plateau"):
        assert [lr_factor(step, 4, 2, kind, 2) for step in range(4)] == [0.5, 1, 1, 1]
    assert [lr_factor(step, 6, 2, "linear", 2) for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert [lr_factor(step, 7, 2, "wsd", 3) for step in range(7)] == [0.5, 1, 1, 1, 0.75, 0.5, 0.25]


@given(
    TOTALS,
    st.integers(0, 6000),
    st.sampled_from(["cosine", "constant", "linear", "wsd"]),
    st.floats(0.001, 1),
)
def test_the_rate_rises_only_during_warm_up(
    total: int, warmup: int, kind: str, cooldown: float
) -> None:
    length = cooldown_length(total, cooldown)
    rates = [lr_factor(step, total, warmup, kind, length) for step in range(total)]
    assert all(0 < share <= 1 for share in rates)
    up, after = rates[:warmup], rates[warmup:]
    assert up == sorted(up)
    assert after == sorted(after, reverse=True)


def test_branches_by_hand() -> None:
    # A fifth of each step, at least one: 1, 1, 1, 2, 3, 6.
    assert branch_points((1, 2, 4, 8, 16, 32), 0.2) == {
        0: [1], 1: [2], 3: [4], 6: [8], 13: [16], 26: [32]
    }  # fmt: skip
    assert branch_points((10, 9), 0.5) == {5: [10, 9]}
    assert [cooldown_factor(step, 3) for step in range(3)] == [0.75, 0.5, 0.25]


@given(st.sets(st.integers(1, 3000), min_size=1), st.floats(0.01, 1))
def test_every_pushed_step_has_one_branch(steps: set[int], share: float) -> None:
    points = branch_points(tuple(sorted(steps)), share)
    assert sorted(step for ends in points.values() for step in ends) == sorted(steps)
    assert all(0 <= branch_step < step for branch_step, ends in points.items() for step in ends)
    assert list(points) == sorted(points)
