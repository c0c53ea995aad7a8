"""The speed of `hubmerge select` as ratios, measured in one run.

memory   seconds of one trial (merge in memory, evaluate every validation row) over those of merging
         into a folder and evaluating it, with models opened and rows prepared in both cases.
search   seconds and merges of the policy `uniform` by climbing and racing over those of the full
         grid of the paper's appendix C with all rows; and the best validation accuracy of each.
growth   seconds, merges and measurements of all rows that policy `coordinate` takes, by tasks and
         by steps.
log      seconds of reading a log of trials over those of building a validator for every line, as
         the log was read once.

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

from pydantic import TypeAdapter

from benchmarks.cases import BUILD
from benchmarks.publishing import embedded_hub
from hubmerge.choosing.merge_selection import PreparedSelection, SelectRequest
from hubmerge.flows.select import choice_from_lock, prepare_selection, select
from hubmerge.flows.train import train
from hubmerge.hub.client import Hub
from hubmerge.hub.environment import home
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import parse_params
from hubmerge.models.loading import load_model
from hubmerge.refs import parse_ref
from hubmerge.runs.expert_job import prepare_expert_run as prepare_run
from hubmerge.runs.machine import Machine
from hubmerge.selection.choice import Choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.policies import uniform
from hubmerge.selection.policy_results import PolicyResults
from hubmerge.selection.search import Budget, Search
from hubmerge.selection.task_split import LoadedModel, TaskSplit
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.trials import SELECTION_SPLIT, Part, RowResults, Trial, TrialLog

OUT = BUILD / "bench-select.json"
TASKS = ("mnist", "fashion", "hebrew", "texture", "housenum", "latin", "greek", "kana")
METHODS = ("task_arithmetic", "ties")
Row = dict[str, Any]


def train_experts(hub: Hub, tasks: Sequence[str], steps: int) -> None:
    """An expert of each task, pushed at 2^k."""
    for task in tasks:
        spec = TrainSpec(
            base="hubmerge/tiny-clip", task=f"mini-{task}", to=f"bench/{task}", steps=steps,
            lr=5e-4, batch=32, schedule="constant", augment=False,
        )  # fmt: skip
        run = prepare_run(hub, spec, find_task(spec.task), home() / "runs", None, Machine())
        train(hub, run, lambda *values: None)


def prepare(hub: Hub, tasks: Sequence[str], method: str) -> PreparedSelection:
    refs = tuple(parse_ref(f"bench/{task}") for task in tasks)
    return prepare_selection(hub, SelectRequest(refs, method), lambda *values: None)


def new_search(chosen: PreparedSelection, exhaustive: bool = False) -> Search:
    """A search with an empty log."""
    log = TrialLog(Path(tempfile.mkdtemp()) / "trials.jsonl")
    blender = MemoryMerger(chosen.pool, chosen.method)
    evaluator = Evaluator(chosen.pool, blender, chosen.method, chosen.splits, log, SELECTION_SPLIT)
    return Search(evaluator, GRIDS[chosen.method.name], Budget(), exhaustive=exhaustive)


def measure_memory_merge(hub: Hub, tasks: Sequence[str], method: str, repeats: int) -> Row:
    """A trial in memory compared with one on disk."""
    chosen = prepare(hub, tasks, method)
    lock = select(chosen, TrialLog(Path(tempfile.mkdtemp()) / "trials.jsonl"), lambda *_: None).lock
    choice = choice_from_lock(chosen.pool, chosen.method, lock, "last")
    ours, theirs = [], []
    for repeat in range(repeats):
        moved = choice.with_params(scale=0.3 + repeat / 1000)
        search = new_search(chosen)
        search.evaluator.measure(choice)  # reads the experts, which are in the page cache for both
        began = time.perf_counter()
        accuracy = search.evaluator.measure(moved).accuracy
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert abs(accuracy_on_disk(chosen, moved) - accuracy) < 1e-9
        theirs.append(time.perf_counter() - began)
    return {"memory": method, "ours s": median(ours), "disk s": median(theirs),
            "ratio": median(ours) / median(theirs)}  # fmt: skip


def accuracy_on_disk(chosen: PreparedSelection, choice: Choice) -> float:
    """Merge into a folder, open it and evaluate every row."""
    pool, out = chosen.pool, Path(tempfile.mkdtemp()) / "merged"
    plan_experts = tuple(
        Expert(pool.open(expert), source.key, source.weight)
        for expert, source in zip(pool.experts(choice), pool.sources(choice), strict=True)
    )
    params = parse_params(chosen.method, dict(choice.params))
    merge(MergePlan(pool.base_checkpoint, plan_experts, chosen.method, params), out)
    loaded = LoadedModel(load_model(out, "image"), chosen.splits[0].loaded_model.device)
    right = rows = 0.0
    for task in pool.tasks:
        task_split = TaskSplit(loaded, load_split(task, SELECTION_SPLIT))
        values = task_split.evaluate(task_split.row_order, out)
        right, rows = right + values.count("1") / len(values), rows + 1
    return right / rows


def measure_searches(hub: Hub, tasks: Sequence[str], method: str) -> Iterator[Row]:
    """The best common step by climbing and by the full grid."""
    chosen = prepare(hub, tasks, method)
    for name, exhaustive in (("climb and race", False), ("whole grid", True)):
        search = new_search(chosen, exhaustive)
        began = time.perf_counter()
        best = max(uniform(search), key=lambda result: result.accuracy)
        yield {"search": f"{method}, {name}", "s": time.perf_counter() - began,
               **search_cost(search), "validation": best.accuracy}  # fmt: skip


def measure_growth(hub: Hub, tasks: Sequence[str], method: str, steps: int) -> Row:
    """The cost of the policy coordinate among the last `steps` steps of each expert."""
    all_steps = prepare(hub, tasks, method)
    last = tuple(group[-steps:] for group in all_steps.pool.candidates)
    opened_pool = replace(all_steps.opened_pool, pool=replace(all_steps.pool, candidates=last))
    policy_results = PolicyResults(new_search(replace(all_steps, opened_pool=opened_pool)))
    began = time.perf_counter()
    for policy in ("proxy", "coordinate"):
        policy_results.run(policy)
    return {"growth": f"{method}, {len(tasks)} tasks x {steps} steps",
            "s": time.perf_counter() - began, **search_cost(policy_results.search)}  # fmt: skip


def measure_log(lines: int) -> Row:
    """Reading trials of four tasks and 400 rows by a log, and by one validator for each line."""
    log = TrialLog(Path(tempfile.mkdtemp()) / "trials.jsonl")
    rows = {f"mini-{task}@0123456789abcdef": RowResults("1101" * 100, 400) for task in TASKS[:4]}
    parts = tuple(Part(f"{number:040x}") for number in range(4))
    params = {"scale": 0.5, "density": 0.2}
    log.append(
        Trial(f"{number:064x}", "b" * 40, parts, "ties", params, SELECTION_SPLIT, rows)
        for number in range(lines)
    )
    began = time.perf_counter()
    trials = log.read()
    ours, began = (time.perf_counter() - began) / lines, time.perf_counter()
    few = log.path.read_text().splitlines()[:50]
    assert [TypeAdapter(Trial).validate_json(line) for line in few] == trials[:50]
    theirs = (time.perf_counter() - began) / len(few)
    return {"log": lines, "ours s per 1000": 1000 * ours, "validators s per 1000": 1000 * theirs,
            "ratio": ours / theirs}  # fmt: skip


def search_cost(search: Search) -> Row:
    evaluator = search.evaluator
    return {
        "merges": evaluator.merges,
        "evaluations": sum(evaluator.rows_by_recipe.values()) / evaluator.rows,
    }


def main() -> None:
    """Print every row as it is measured, and write all rows."""
    parser = argparse.ArgumentParser(description="Speed of hubmerge select, as ratios.")
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in row.items()), flush=True)  # fmt: skip

    keep(measure_log(200 if quick else 5000))
    with tempfile.TemporaryDirectory() as folder, embedded_hub(Path(folder)) as hub:
        print("training the experts ...", file=sys.stderr)
        train_experts(hub, TASKS[: 2 if quick else 8], 8 if quick else 256)
        four = TASKS[: 2 if quick else 4]
        for method in METHODS[: 1 if quick else 2]:
            keep(measure_memory_merge(hub, four, method, 1 if quick else 5))
            for row in measure_searches(hub, four, method):
                keep(row)
            for count, steps in ((2, 2),) if quick else ((2, 8), (4, 8), (8, 8), (4, 2), (4, 4)):
                keep(measure_growth(hub, TASKS[:count], method, steps))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
