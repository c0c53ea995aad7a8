"""Measure each policy alone: its cost, and the test accuracy of its choice."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hubmerge.choosing.merge_selection import PreparedSelection
from hubmerge.reproduce.units.merges import Evaluators
from hubmerge.reproduce.units.policies import POLICY_PREREQUISITES
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.policy_results import PolicyResult, PolicyResults
from hubmerge.selection.report import BAND, earliest_of_tied
from hubmerge.selection.search import Budget, Search


def measure_policies(
    prepared: PreparedSelection, log: Path, policies: Collection[str] = POLICY_PREREQUISITES
) -> Iterator[dict[str, Any]]:
    """A row for each policy, and one for the choice of `hubmerge select` among all policies."""
    evaluators = Evaluators(prepared, log)
    tests = evaluators.test
    results: list[PolicyResult] = []
    for name in policies:
        evaluator = evaluators.new_validation()
        policy_results = PolicyResults(Search(evaluator, GRIDS[prepared.method.name], Budget()))
        started = time.monotonic()
        for policy in POLICY_PREREQUISITES[name]:
            policy_results.run(policy)
        if name not in policy_results.results:
            continue
        results.append(policy_results.results[name])
        yield _row(policy_results.results[name], tests, evaluator, time.monotonic() - started)
        if name == "uniform":
            for point in policy_results.uniform:
                result = PolicyResult("uniform", point, 0)
                yield {"curve": True, **_row(result, tests, evaluator, 0.0)}
    chosen = earliest_of_tied(
        [point for point in results if point.name != "rescale"], prepared.pool, BAND
    )
    yield {**_row(chosen, tests, evaluator, 0.0), "policy": "select", "of": chosen.name}


def _row(
    policy: PolicyResult, tests: Evaluator, evaluator: Evaluator, seconds: float
) -> dict[str, Any]:
    choice = policy.result.choice
    test = tests.measure(choice)
    return {
        "policy": policy.name,
        "steps": tests.pool.steps(choice),
        "weights": choice.weights,
        "keep": choice.keep,
        "intruders": choice.intruders,
        "params": {k: v for k, v in choice.params if isinstance(v, float)},
        "validation": policy.result.accuracy,
        "test": test.accuracy,
        "test s.e.": test.stderr,
        "merges": evaluator.merges,
        "evaluations": sum(evaluator.rows_by_recipe.values()) / evaluator.rows,
        "seconds": seconds,
    }
