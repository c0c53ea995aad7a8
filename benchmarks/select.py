"""How fast is `hubmerge select`? Ratios, measured side by side in one run.

memory   seconds of one trial (merge in memory, ask every validation row) over those of merging into
         a folder and evaluating it, models opened and rows prepared alike.
search   seconds and merges of the policy `uniform` by climbing and racing over those of the whole
         grid of the paper's appendix C, every row asked; and what each found on validation.
growth   seconds, merges and measurements of all rows that policy `coordinate` takes, by tasks and
         by steps.

    python -m benchmarks.select            ten minutes on an idle machine
    python -m benchmarks.select --quick    to see that it runs
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import BUILD
from benchmarks.publishing import embedded_hub
from hubmerge.choosing.merge_selection import Prepared, Request
from hubmerge.flows.select import choice_of, prepare, select
from hubmerge.flows.train import train
from hubmerge.hub.client import Hub
from hubmerge.hub.environment import home
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import parse_params
from hubmerge.models.loading import open_model
from hubmerge.refs import parse_ref
from hubmerge.runs.expert_job import prepare as prepare_run
from hubmerge.runs.machine import Machine
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.policies import uniform
from hubmerge.selection.policy_results import Board
from hubmerge.selection.pool import Choice
from hubmerge.selection.search import Budget, Search
from hubmerge.selection.task_split import Dressed, Stage
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.trials import CHOSEN_ON, TrialLog

OUT = BUILD / "bench-select.json"
TASKS = ("mnist", "fashion", "hebrew", "texture", "housenum", "latin", "greek", "kana")
METHODS = ("task_arithmetic", "ties")
Row = dict[str, Any]


def experts(hub: Hub, tasks: Sequence[str], steps: int) -> None:
    """An expert of each task, pushed at 2^k."""
    for task in tasks:
        spec = TrainSpec(
            base="hubmerge/tiny-clip", task=f"mini-{task}", to=f"bench/{task}", steps=steps,
            lr=5e-4, batch=32, schedule="constant", augment=False,
        )  # fmt: skip
        run = prepare_run(hub, spec, find_task(spec.task), home() / "runs", None, Machine())
        train(hub, run, lambda *said: None)


def prepared(hub: Hub, tasks: Sequence[str], method: str) -> Prepared:
    refs = tuple(parse_ref(f"bench/{task}") for task in tasks)
    return prepare(hub, Request(refs, method), lambda *said: None)


def search_of(chosen: Prepared, exhaustive: bool = False) -> Search:
    """A search that knows nothing yet."""
    log = TrialLog(Path(tempfile.mkdtemp()) / "trials.jsonl")
    blender = Blender(chosen.pool, chosen.method)
    arena = Evaluator(chosen.pool, blender, chosen.method, chosen.stages, log, CHOSEN_ON)
    return Search(arena, GRIDS[chosen.method.name], Budget(), exhaustive=exhaustive)


def memory(hub: Hub, tasks: Sequence[str], method: str, repeats: int) -> Row:
    """A trial in memory beside one on disk."""
    chosen = prepared(hub, tasks, method)
    lock = select(chosen, TrialLog(Path(tempfile.mkdtemp()) / "trials.jsonl"), lambda *_: None).lock
    choice = choice_of(chosen.pool, chosen.method, lock, "last")
    ours, theirs = [], []
    for repeat in range(repeats):
        moved = choice.setting(scale=0.3 + repeat / 1000)
        search = search_of(chosen)
        search.arena.measure(choice)  # reads the experts, which the page cache does for the other
        began = time.perf_counter()
        accuracy = search.arena.measure(moved).accuracy
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert abs(on_disk(chosen, moved) - accuracy) < 1e-9
        theirs.append(time.perf_counter() - began)
    return {"memory": method, "ours s": median(ours), "disk s": median(theirs),
            "ratio": median(ours) / median(theirs)}  # fmt: skip


def on_disk(chosen: Prepared, choice: Choice) -> float:
    """Merge into a folder, open it, ask every row."""
    pool, out = chosen.pool, Path(tempfile.mkdtemp()) / "merged"
    plan_experts = tuple(
        Expert(pool.open(one), source.key, source.weight)
        for one, source in zip(pool.experts(choice), pool.sources(choice), strict=True)
    )
    params = parse_params(chosen.method, dict(choice.params))
    merge(MergePlan(pool.base_checkpoint, plan_experts, chosen.method, params), out)
    dressed = Dressed(open_model(out, "image"), chosen.stages[0].dressed.device)
    right = rows = 0.0
    for task in pool.tasks:
        stage = Stage(dressed, load_split(task, CHOSEN_ON))
        said = stage.ask(stage.order, out)
        right, rows = right + said.count("1") / len(said), rows + 1
    return right / rows


def searching(hub: Hub, tasks: Sequence[str], method: str) -> Iterator[Row]:
    """The best common step, by climbing and by the whole grid."""
    chosen = prepared(hub, tasks, method)
    for name, exhaustive in (("climb and race", False), ("whole grid", True)):
        search = search_of(chosen, exhaustive)
        began = time.perf_counter()
        best = max(uniform(search), key=lambda one: one.accuracy)
        yield {"search": f"{method}, {name}", "s": time.perf_counter() - began,
               **cost(search), "validation": best.accuracy}  # fmt: skip


def growth(hub: Hub, tasks: Sequence[str], method: str, steps: int) -> Row:
    """What coordinate takes among the last so many steps."""
    whole = prepared(hub, tasks, method)
    last = tuple(its[-steps:] for its in whole.pool.candidates)
    gathered = replace(whole.gathered, pool=replace(whole.pool, candidates=last))
    chosen = replace(whole, gathered=gathered)
    board = Board(search_of(chosen))
    began = time.perf_counter()
    for policy in ("proxy", "coordinate"):
        board.run(policy)
    return {"growth": f"{method}, {len(tasks)} tasks x {steps} steps",
            "s": time.perf_counter() - began, **cost(board.search)}  # fmt: skip


def cost(search: Search) -> Row:
    arena = search.arena
    return {"merges": arena.merges, "evaluations": sum(arena.asked.values()) / arena.rows}


def main() -> None:
    """Print every row as it is measured, and keep all."""
    options = argparse.ArgumentParser(description="Speed of hubmerge select, as ratios.")
    options.add_argument("--quick", action="store_true")
    quick = options.parse_args().quick
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in row.items()), flush=True)  # fmt: skip

    with tempfile.TemporaryDirectory() as folder, embedded_hub(Path(folder)) as hub:
        print("training the experts ...", file=sys.stderr)
        experts(hub, TASKS[: 2 if quick else 8], 8 if quick else 256)
        four = TASKS[: 2 if quick else 4]
        for method in METHODS[: 1 if quick else 2]:
            keep(memory(hub, four, method, 1 if quick else 5))
            for row in searching(hub, four, method):
                keep(row)
            for count, steps in ((2, 2),) if quick else ((2, 8), (4, 8), (8, 8), (4, 2), (4, 4)):
                keep(growth(hub, TASKS[:count], method, steps))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
