"""Maximising the mean or the worst task, worked by hand on a few rows."""

from __future__ import annotations

import pytest

from hubmerge.selection import objective

from .builders import make_trial

EVEN = make_trial("even", a="1100", b="1100")  # 50 and 50 %
SKEWED = make_trial("skewed", a="1111", b="1000")  # 100 and 25 %


def test_the_worst_task_and_the_mean_rank_differently() -> None:
    assert objective.value(EVEN, "mean") == objective.value(EVEN, "worst") == 0.5
    assert objective.value(SKEWED, "mean") == 0.625
    assert objective.value(SKEWED, "worst") == 0.25
    assert objective.value(SKEWED, "pareto") == 0.625


def test_the_lead_is_taken_on_the_worst_task_of_the_rival() -> None:
    lead, stderr = objective.lead(EVEN, SKEWED, "worst")
    assert lead == pytest.approx(0.25)  # 50 % of b instead of 25 %
    assert stderr == pytest.approx(0.25)  # of the differences 0, 1, 0 and 0: sqrt(1/4 / 4)
    assert objective.lead(EVEN, SKEWED, "mean")[0] == pytest.approx(-0.125)


def test_a_trial_that_was_stopped_early_is_estimated_from_shared_rows() -> None:
    started = make_trial("started", a="10", b="11")
    started = started.truncate({"a": 2, "b": 2})
    for task, rows in started.rows.items():
        object.__setattr__(started.rows[task], "of", 4)
        assert rows.of == 4
    # On a it loses a row of two, on b it gains one of two: 100 - 50 and 25 + 50 %.
    assert objective.estimate(started, SKEWED, "worst")[0] == pytest.approx(0.5)
    assert objective.estimate(started, SKEWED, "mean")[0] == pytest.approx(0.625)
    assert objective.estimate(SKEWED, EVEN, "worst") == (0.25, 0.0)


def test_a_trial_dominates_if_it_is_better_somewhere_and_worse_nowhere() -> None:
    better = make_trial("better", a="1111", b="1100")
    assert objective.dominates(better, SKEWED)
    assert objective.dominates(better, EVEN)
    assert not objective.dominates(SKEWED, EVEN)
    assert not objective.dominates(EVEN, EVEN)
