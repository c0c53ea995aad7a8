"""Policies for choosing steps, each measured alone on the same experts."""

from __future__ import annotations

from hubmerge.reproduce.plan import STOPPED_PREFIX
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.merges import TRIALS, Evaluators, prepare_by_digest, task_accuracies
from hubmerge.reproduce.units.work import UnitJob, step_ref
from hubmerge.selection.grids import find_grid
from hubmerge.selection.policy_results import PolicyResults
from hubmerge.selection.search import Budget, Search

# Policy -> the policies to run for it, itself last.
POLICY_PREREQUISITES = {
    "last": ("last",),
    "best-expert": ("best-expert",),
    "early-stop": ("early-stop",),
    "proxy": ("proxy",),
    "uniform": ("uniform",),
    "coordinate": ("early-stop", "proxy", "coordinate"),
    "weights": ("uniform", "weights"),
    "joint": ("early-stop", "proxy", "coordinate", "joint"),
    "average-last": ("last", "average-last"),
    "greedy-soup": ("early-stop", "proxy", "coordinate", "greedy-soup"),
    "rescale": ("last", "rescale"),
}


def policies(work: UnitJob) -> Result:
    """A row for each policy: its choice on validation, its number of merges, its test accuracy."""
    method, steps = work.params["method"], work.params["steps"]
    refs = tuple(step_ref(run, step) for run in work.experts.values() for step in steps)
    stopped = (run for role, run in work.inputs.items() if role.startswith(STOPPED_PREFIX))
    ends = tuple(step_ref(run, -1) for run in stopped)
    prepared = prepare_by_digest(work, method, (*refs, *ends))
    names, rows = list(work.experts), []
    with work.scratch() as folder:
        evaluators = Evaluators(prepared, folder / TRIALS)
        for name in work.params["policies"]:
            evaluator = evaluators.new_validation()
            policy_results = PolicyResults(Search(evaluator, find_grid(method), Budget()))
            for policy in POLICY_PREREQUISITES[name]:
                policy_results.run(policy)
            if name not in policy_results.results:
                continue  # no run was stopped early
            best = policy_results.results[name].result
            test = evaluators.test.measure(best.choice)
            rows.append({
                "policy": name,
                "validation": best.accuracy,
                "value": test.accuracy,
                "stderr": test.stderr,
                "merges": evaluator.merges,
                "ended": list(prepared.pool.steps(best.choice)),
                "tasks": dict(zip(names, task_accuracies(test), strict=True)),
                "note": "steps " + " ".join(map(str, prepared.pool.steps(best.choice))),
            })  # fmt: skip
    return {"rows": rows}
