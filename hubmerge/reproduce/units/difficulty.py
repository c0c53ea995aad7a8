"""Hard examples: EL2N, the share of the loss that they carry, and what merges forget of them.

Source: arXiv 2506.14126, sections 2.4 and 4, figures 3 and 4.
"""

from __future__ import annotations

import json

import numpy as np

from hubmerge.difficulty.bins import BINS, bins_of, shares, sums
from hubmerge.flows.difficulty import measure
from hubmerge.flows.evaluate import Bench
from hubmerge.predictions import Bools
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.merges import prepared_for, stages_of
from hubmerge.reproduce.units.work import Work, ref, silent
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.pool import plain_choice

SPLIT = "train"


def difficulty(work: Work) -> Result:
    """The difficulty.json of a task's training examples, over runs that differ in their seed."""
    models = [work.open(run, -1) for run in work.inputs.values()]
    task = work.task(work.params["task"])
    found = measure(work.hub, models, task, SPLIT, work.shop.device, silent)
    return {"file": json.loads(found.to_bytes())}


def loss_shares(work: Work) -> Result:
    """A row for each step and bin: what the bin has of the loss of all training examples."""
    run, task = work.inputs["expert"], work.task(work.params["task"])
    bins = bins_of(work.inputs["difficulty"]["file"]["el2n"])
    bench = Bench(work.hub, SPLIT, work.device)
    rows = []
    for step in work.params["steps"]:
        said = bench.answers(work.open(run, step), task)
        for number, share in enumerate(shares(said.loss, bins), start=1):
            rows.append({"step": step, "bin": number, "value": float(share)})
    return {"rows": rows}


def forgotten(work: Work) -> Result:
    """A row for each bin: its share of what is forgotten, and of what of it was known.

    Forgotten is what a task's own expert has right and the merge, as its unit tuned it, has wrong.
    """
    lost, known = np.zeros(BINS), np.zeros(BINS)
    bench = Bench(work.hub, SPLIT, work.device)
    for name, after in _merged_right(work).items():
        before = bench.answers(
            work.open(work.inputs[name], work.params["step"]), work.task_of(name)
        )
        bins = bins_of(work.inputs[f"difficulty {name}"]["file"]["el2n"])
        lost += sums(before.right & ~after, bins)
        known += sums(before.right, bins)
    return {
        "rows": [
            {"bin": place + 1, "value": float(share), "rate": float(rate)}
            for place, (share, rate) in enumerate(
                zip(lost / max(lost.sum(), 1), lost / np.maximum(known, 1), strict=True)
            )
        ]
    }


def _merged_right(work: Work) -> dict[str, Bools]:
    """Task -> which of its training examples the merge has right, in their order."""
    refs = [ref(run, work.params["step"]) for run in work.experts.values()]
    prepared = prepared_for(work, work.unit.needs["merge"].params["method"], refs)
    choice = plain_choice((0,) * len(refs), work.inputs["merge"]["params"])
    merged = dict(Blender(prepared.pool, prepared.method).merged(choice))
    stages = stages_of(prepared, SPLIT)
    for dressed in dict.fromkeys(stage.dressed for stage in stages):
        dressed.wear(merged)
    experts = prepared.pool.experts(choice)
    return {
        name: stage.answers(range(len(stage.order)), prepared.pool.open(expert).folder).right
        for name, stage, expert in zip(work.experts, stages, experts, strict=True)
    }
