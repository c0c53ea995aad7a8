"""How policies share a budget, and that none is worse than the choice that it starts from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.selection.budget_shares import BudgetShares
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.policies import earliest_best
from hubmerge.selection.policy_results import PolicyResults, policy_order, policy_shares
from hubmerge.selection.report import common_curve
from hubmerge.selection.search import Budget, OutOfBudget

from .test_search import SearchSetup

STARTS = {
    "coordinate": ("last", "best-expert", "proxy", "uniform"),
    "average-last": ("last", "uniform", "coordinate"),
    "weights": ("uniform",),
    "joint": ("last", "uniform", "coordinate", "weights"),
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> SearchSetup:
    """A pool whose trials are logged, so that every further search takes no time."""
    return SearchSetup(tmp_path_factory.mktemp("pool"))


def run_all(setup: SearchSetup, merges: int, requested: str | None = None) -> PolicyResults:
    results = PolicyResults(setup.search(merges))
    for name, share in policy_shares(policy_order(setup.pool, requested), requested).items():
        results.run(name, share)
    return results


def test_shares_are_fractions_of_what_is_left() -> None:
    # Half of what is left for what others are compared with; the others' parts are 4 and 2.
    shares = policy_shares(["last", "coordinate", "uniform", "weights"])
    assert shares == pytest.approx({"last": 0.5, "coordinate": 4 / 9, "uniform": 0.6, "weights": 1})
    # A requested policy gets as many parts as all others: last's 1, 4 and 2.
    shares = policy_shares(["last", "uniform", "coordinate", "weights"], "uniform")
    assert shares["uniform"] == pytest.approx(7 / 13)


def test_no_norm_is_computed_for_a_start_that_the_budget_does_not_reach(
    setup: SearchSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale of a start takes a whole merge, so the budget comes first."""
    search, computed = setup.search(1), list[Choice]()
    merge_norm = search.evaluator.merger.merge_norm

    def count_norms(choice: Choice) -> float:
        computed.append(choice)
        return merge_norm(choice)

    monkeypatch.setattr(search.evaluator.merger, "merge_norm", count_norms)
    first = search.measure_start((0, 0))
    with pytest.raises(OutOfBudget):
        search.measure_start((1, 1))
    assert [choice.indices for choice in computed] == [(0, 0)]
    assert search.measure_start((0, 0)) == first  # measured already, so it costs nothing


def test_the_rival_is_tuned_as_without_a_limit(setup: SearchSetup) -> None:
    """A gain over a rival that had a small share of the budget would be the budget's."""
    tuned = run_all(setup, 1000).results["last"]
    assert tuned.evaluations > 2
    assert run_all(setup, 2 * tuned.evaluations).results["last"] == tuned


def test_the_curve_has_the_best_common_step_where_the_budget_ended(setup: SearchSetup) -> None:
    for merges in range(4, 40, 3):
        results = run_all(setup, merges)
        if "uniform" in results.results:
            best = results.results["uniform"].result
            points = {p.step: p.accuracy for p in common_curve(results.uniform, setup.pool)}
            assert points[setup.pool.steps(best.choice)[0]] == best.trial.accuracy


def test_no_seconds_left_allow_nothing(setup: SearchSetup) -> None:
    """What is left of the time for folds and controls may be none at all, which is not no limit."""
    search = setup.search()
    for budget in (Budget(seconds=0.0), BudgetShares(seconds=0.0).controls()):
        search.budget = budget
        with pytest.raises(OutOfBudget):
            search.measure_all_rows(plain_choice((0, 0), {"scale": 0.4}))


def test_an_allotment_limits_what_is_spent(setup: SearchSetup) -> None:
    budget = Budget(merges=16)
    budget.allot(spent=6, fraction=0.3)
    search = setup.search()
    search.budget = budget
    for number in range(6):
        search.evaluator.measure(plain_choice((0, 0), {"scale": 0.1 + number / 100}))
    results = PolicyResults(search)
    results.run("last", share=0.3)  # 3 of the 10 merges that are left
    assert search.evaluator.merges == 9
    results.run("last", share=0.0)  # at least one
    assert search.evaluator.merges <= 10


@given(merges=st.integers(4, 90), requested=st.sampled_from([None, *STARTS]))
@settings(max_examples=8, deadline=None)
def test_no_policy_is_worse_than_its_start(
    setup: SearchSetup, merges: int, requested: str | None
) -> None:
    results = run_all(setup, merges, requested)
    assert results.search.evaluator.merges <= merges
    order = list(results.results)
    for name, starts in STARTS.items():
        if name not in results.results:
            continue
        before = order[: order.index(name)]
        known = [results.results[start].result for start in starts if start in before]
        if known:
            start = earliest_best(results.search, known)
            assert results.results[name].result.accuracy >= start.accuracy


def test_every_policy_gets_a_share(setup: SearchSetup) -> None:
    results = run_all(setup, 40)
    assert list(results.results) == policy_order(setup.pool)
    spent = [result.evaluations for result in results.results.values()]
    assert spent == sorted(spent)
    assert spent[-1] <= 40


def test_a_rerun_from_the_log_is_the_same(setup: SearchSetup) -> None:
    first, again = run_all(setup, 60), run_all(setup, 60)
    assert [*first.search.trials] == [*again.search.trials]
    picks = [
        {name: (result.result.choice, result.evaluations) for name, result in run.results.items()}
        for run in (first, again)
    ]
    assert picks[0] == picks[1]


def test_the_earliest_of_equals_is_taken(setup: SearchSetup) -> None:
    search = setup.search()
    late = search.measure_all_rows(plain_choice((3, 3), {"scale": 1e-6}))
    early = search.measure_all_rows(plain_choice((0, 0), {"scale": 1e-6}))
    assert late.accuracy == early.accuracy
    assert search.best == early
    assert earliest_best(search, [late, early]) == early
    assert search.better_of(late.choice, early) == early
    assert search.better_of(early.choice, late) == early
