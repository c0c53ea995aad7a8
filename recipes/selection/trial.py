"""Each policy by itself: what it would cost alone, and the test accuracy of what it chose."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hubmerge.flows.selection import Prepared
from hubmerge.models.opening import open_model
from hubmerge.selection.arena import Arena
from hubmerge.selection.blending import Blender
from hubmerge.selection.board import Board, Policy
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.report import BAND, earliest
from hubmerge.selection.search import Budget, Search
from hubmerge.selection.stage import Dressed, Stage
from hubmerge.tasks.data import load_split
from hubmerge.trials import CHOSEN_ON, TrialLog

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


def measured(
    prepared: Prepared, log: Path, policies: Collection[str] = ALONE
) -> Iterator[dict[str, Any]]:
    """A row for each policy, and for the best of all as `hubmerge select` takes it."""
    blender = Blender(prepared.pool, prepared.method)
    tests = _test_arena(prepared, blender, log)
    found: list[Policy] = []
    for name in policies:
        arena = Arena(
            prepared.pool, blender, prepared.method, prepared.stages, TrialLog(log), CHOSEN_ON
        )
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


def _test_arena(prepared: Prepared, blender: Blender, log: Path) -> Arena:
    first = prepared.stages[0]
    model = open_model(prepared.gathered.base.folder, first.task.spec.kind)
    dressed = Dressed(model, first.dressed.device)
    stages = [Stage(dressed, load_split(task, "test")) for task in prepared.pool.tasks]
    return Arena(prepared.pool, blender, prepared.method, stages, TrialLog(log), "test")


def _row(policy: Policy, tests: Arena, arena: Arena, seconds: float) -> dict[str, Any]:
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
