"""Each policy by itself: what it would cost alone, and the test accuracy of what it chose."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hubmerge.choosing.merge_selection import Prepared
from hubmerge.reproduce.units.merges import Arenas
from hubmerge.reproduce.units.policies import ALONE
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.policy_results import Board, Policy
from hubmerge.selection.report import BAND, earliest
from hubmerge.selection.search import Budget, Search


def measured(
    prepared: Prepared, log: Path, policies: Collection[str] = ALONE
) -> Iterator[dict[str, Any]]:
    """A row for each policy, and for the best of all as `hubmerge select` takes it."""
    arenas = Arenas(prepared, log)
    tests = arenas.test
    found: list[Policy] = []
    for name in policies:
        arena = arenas.fresh()
        board = Board(Search(arena, GRIDS[prepared.method.name], Budget()))
        started = time.monotonic()
        for policy in ALONE[name]:
            board.run(policy)
        if name not in board.found:
            continue
        found.append(board.found[name])
        yield _row(board.found[name], tests, arena, time.monotonic() - started)
        if name == "uniform":
            yield from ({"curve": True, **_row(Policy("uniform", one, 0), tests, arena, 0.0)}
                        for one in board.uniform)  # fmt: skip
    chosen = earliest([one for one in found if one.name != "rescale"], prepared.pool, BAND)
    yield {**_row(chosen, tests, arena, 0.0), "policy": "select", "of": chosen.name}


def _row(policy: Policy, tests: Evaluator, arena: Evaluator, seconds: float) -> dict[str, Any]:
    choice = policy.found.choice
    test = tests.measure(choice)
    return {
        "policy": policy.name,
        "steps": tests.pool.steps(choice),
        "weights": choice.weights,
        "keep": choice.keep,
        "intruders": choice.intruders,
        "params": {k: v for k, v in choice.params if isinstance(v, float)},
        "validation": policy.found.accuracy,
        "test": test.accuracy,
        "test s.e.": test.stderr,
        "merges": arena.merges,
        "evaluations": sum(arena.asked.values()) / arena.rows,
        "seconds": seconds,
    }
