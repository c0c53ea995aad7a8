"""Hard examples: EL2N, the share of the loss that they carry, and what merges forget of them.

Source: arXiv 2506.14126, sections 2.4 and 4, figures 3 and 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubmerge.difficulty.bins import BINS, Ints, bins_of, shares, sums
from hubmerge.flows import merge as merging
from hubmerge.flows.difficulty import measure
from hubmerge.flows.evaluate import Bench
from hubmerge.flows.sources import Opened, open_pinned, pin
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.work import Work, ref, silent

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

    Forgotten is what a task's own expert has right and the merge has wrong.
    """
    lost, known = np.zeros(BINS), np.zeros(BINS)
    bench = Bench(work.hub, SPLIT, work.device)
    with work.scratch() as folder:
        merged = _merged(work, folder)
        for name in work.experts:
            said = _answers(work, bench, merged, name)
            lost += sums(said.before & ~said.after, said.bins)
            known += sums(said.before, said.bins)
    return {
        "rows": [
            {"bin": place + 1, "value": float(share), "rate": float(rate)}
            for place, (share, rate) in enumerate(
                zip(lost / max(lost.sum(), 1), lost / np.maximum(known, 1), strict=True)
            )
        ]
    }


@dataclass(frozen=True, eq=False)
class Told:
    """Of each training example of one task: right by its expert, right by the merge, its bin."""

    before: Any
    after: Any
    bins: Ints


def _answers(work: Work, bench: Bench, merged: Opened, name: str) -> Told:
    task, run = work.task_of(name), work.inputs[name]
    own = bench.answers(work.open(run, work.params["step"]), task)
    el2n: Sequence[float] = work.inputs[f"difficulty {name}"]["file"]["el2n"]
    return Told(own.right, bench.answers(merged, task).right, bins_of(el2n))


def _merged(work: Work, folder: Any) -> Opened:
    """The merge as its unit tuned it, written out."""
    params = {name: str(value) for name, value in work.inputs["merge"]["params"].items()}
    method = work.unit.needs["merge"].params["method"]
    refs = tuple(ref(run, work.params["step"]) for run in work.experts.values())
    request = merging.MergeRequest(refs, method, params, out=folder / "merge")
    prepared = merging.prepare(work.hub, request, folder)
    made = merging.merge_and_publish(work.hub, prepared, silent)
    return open_pinned(work.hub, pin(work.hub, ModelRef(path=made.folder)))
