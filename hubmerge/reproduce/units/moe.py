"""Mixtures that start from one step of every expert."""

from __future__ import annotations

import math

from hubmerge.flows import moerge as flow
from hubmerge.flows.evaluate import Bench
from hubmerge.opening.references import open_pinned, pin
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.scores import TEST
from hubmerge.reproduce.units.work import Work, last_of, ref, silent
from hubmerge.specs import MoeSpec, validated


def mixture(work: Work) -> Result:
    """Build and train one, and measure it on every task; who it routes to is not told."""
    step, runs = work.params["step"], work.experts
    spec = validated(MoeSpec, work.params["moe"], work.unit.about)
    request = flow.Request(tuple(ref(run, step) for run in runs.values()), spec, work.tasks)
    with work.scratch() as folder:
        run = flow.prepare(work.hub, request, folder, work.machine)
        made = flow.moerge(work.hub, run, request, silent)
        assert made is not None
        bench = Bench(work.hub, TEST, work.device)
        opened = open_pinned(work.hub, pin(work.hub, ModelRef(path=made.folder)))
        scores = {name: bench.measure(opened, work.task_of(name)) for name in runs}
    return {
        "rows": [{
            "validation": made.curve[-1].accuracy,
            "value": sum(score.value for score in scores.values()) / len(scores),
            "stderr": math.hypot(*(score.stderr for score in scores.values())) / len(scores),
            "tasks": {name: score.value for name, score in scores.items()},
            "ended": [last_of(run, step) for run in runs.values()],
        }],
    }  # fmt: skip
