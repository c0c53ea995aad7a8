"""Hard examples: EL2N, their share of the loss, and how many of them merges forget.

Source: arXiv 2506.14126, sections 2.4 and 4, figures 3 and 4.
"""

from __future__ import annotations

import json

import numpy as np

from hubmerge.difficulty.bins import BINS, assign_bins, bin_shares, bin_sums
from hubmerge.flows.difficulty import measure_difficulty
from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.predictions import Bools
from hubmerge.progress import no_progress
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.merges import load_splits, prepare_by_digest
from hubmerge.reproduce.units.work import UnitJob, step_ref
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.task_split import load_merge

SPLIT = "train"


def difficulty(work: UnitJob) -> Result:
    """The difficulty.json of a task's training examples, from runs with different seeds."""
    models = [work.open_step(run, -1) for run in work.inputs.values()]
    task = work.task(work.params["task"])
    difficulty = measure_difficulty(work.hub, models, task, SPLIT, work.context.device, no_progress)
    return {"file": json.loads(difficulty.to_bytes())}


def loss_shares(work: UnitJob) -> Result:
    """A row for each step and bin: the bin's share of the loss of all training examples."""
    run, task = work.inputs["expert"], work.task(work.params["task"])
    bins = assign_bins(work.inputs["difficulty"]["file"]["el2n"])
    evaluator = ModelEvaluator(work.hub, SPLIT, work.device)
    rows = []
    for step in work.params["steps"]:
        predictions = evaluator.predict(work.open_step(run, step), task)
        for number, share in enumerate(bin_shares(predictions.loss, bins), start=1):
            rows.append({"step": step, "bin": number, "value": float(share)})
    return {"rows": rows}


def forgotten(work: UnitJob) -> Result:
    """A row for each bin: its share of the forgotten examples, and the rate of forgetting in it.

    Forgotten examples are those that the task's expert predicts correctly and the merge, with the
    parameters of its unit, does not. The rate is relative to what the expert has correct.
    """
    lost, known = np.zeros(BINS), np.zeros(BINS)
    evaluator = ModelEvaluator(work.hub, SPLIT, work.device)
    for name, after in _correct_under_merge(work).items():
        before = evaluator.predict(
            work.open_step(work.inputs[name], work.params["step"]), work.task_of(name)
        )
        bins = assign_bins(work.inputs[f"difficulty {name}"]["file"]["el2n"])
        lost += bin_sums(before.correct & ~after, bins)
        known += bin_sums(before.correct, bins)
    return {
        "rows": [
            {"bin": number, "value": float(share), "rate": float(rate)}
            for number, (share, rate) in enumerate(
                zip(lost / max(lost.sum(), 1), lost / np.maximum(known, 1), strict=True), start=1
            )
        ]
    }


def _correct_under_merge(work: UnitJob) -> dict[str, Bools]:
    """Task -> whether the merge predicts each of its training examples correctly [N]."""
    refs = [step_ref(run, work.params["step"]) for run in work.experts.values()]
    prepared = prepare_by_digest(work, work.unit.needs["merge"].params["method"], refs)
    choice = plain_choice((0,) * len(refs), work.inputs["merge"]["params"])
    task_splits = load_splits(prepared, SPLIT)
    merged = MemoryMerger(prepared.pool, prepared.method).merged_tensors(choice)
    load_merge((task_split.loaded_model for task_split in task_splits), merged)
    experts = prepared.pool.experts(choice)
    return {
        name: task_split.predict(
            range(len(task_split.row_order)), prepared.pool.open(expert).folder
        ).correct
        for name, task_split, expert in zip(work.experts, task_splits, experts, strict=True)
    }
