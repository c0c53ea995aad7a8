"""Policies for choosing steps, each as if it were alone, on the same experts."""

from __future__ import annotations

from hubmerge.reproduce.plan import STOPPED
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.merges import TRIALS, Arenas, by_task, prepared_for
from hubmerge.reproduce.units.work import Work, ref
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.policy_results import Board
from hubmerge.selection.search import Budget, Search

# What has to be run for a policy, itself last.
ALONE = {
    "last": ("last",),
    "best-expert": ("best-expert",),
    "early-stop": ("early-stop",),
    "proxy": ("proxy",),
    "uniform": ("uniform",),
    "coordinate": ("early-stop", "proxy", "coordinate"),
    "weights": ("uniform", "weights"),
    "joint": ("early-stop", "proxy", "coordinate", "joint"),
    "rescale": ("last", "rescale"),
}


def policies(work: Work) -> Result:
    """A row for each policy: its choice on validation, its merges asked, its test accuracy."""
    method, steps = work.params["method"], work.params["steps"]
    refs = tuple(ref(run, step) for run in work.experts.values() for step in steps)
    stopped = (run for role, run in work.inputs.items() if role.startswith(STOPPED))
    ends = tuple(ref(run, -1) for run in stopped)
    prepared = prepared_for(work, method, (*refs, *ends))
    names, rows = list(work.experts), []
    with work.scratch() as folder:
        arenas = Arenas(prepared, folder / TRIALS)
        for name in work.params["policies"]:
            arena = arenas.fresh()
            board = Board(Search(arena, GRIDS[method], Budget()))
            for policy in ALONE[name]:
                board.run(policy)
            if name not in board.found:
                continue  # no run was stopped early
            found = board.found[name].found
            test = arenas.test.measure(found.choice)
            rows.append({
                "policy": name,
                "validation": found.accuracy,
                "value": test.accuracy,
                "stderr": test.stderr,
                "merges": arena.merges,
                "ended": list(prepared.pool.steps(found.choice)),
                "tasks": dict(zip(names, by_task(test), strict=True)),
                "note": "steps " + " ".join(map(str, prepared.pool.steps(found.choice))),
            })  # fmt: skip
    return {"rows": rows}
